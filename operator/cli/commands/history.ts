/** `history NAME`: its revisions, the newest first. Enters: a client, a name. Leaves: text or JSON. */
import type { KubeClient } from '../../kube/client.ts';
import { historyOf } from '../../plan/history.ts';
import type { CommandOptions } from '../command-line.ts';
import { getService, observe } from '../observe.ts';

export async function historyCommand(
  client: KubeClient,
  namespace: string,
  name: string,
  { output }: Pick<CommandOptions, 'output'>,
): Promise<string> {
  const history = historyOf(await observe(client, await getService(client, namespace, name), new Date()));
  if (output === 'json') return `${JSON.stringify(history, undefined, 2)}\n`;
  if (history.length === 0) return `${namespace}/${name} has no revisions yet\n`;
  return table([
    ['REVISION', 'STATE', 'CREATED', 'MODEL', 'COMMIT', 'CHANGED'],
    ...history.map((each) => [
      each.name,
      each.state || '-',
      each.createdAt,
      each.path,
      each.commit?.slice(0, 12) ?? '-',
      each.changed.join(', ') || '-',
    ]),
  ]);
}

function table(rows: readonly (readonly string[])[]): string {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  const line = (row: readonly string[]) =>
    row
      .map((text, column) => text.padEnd(widths[column]!))
      .join('   ')
      .trimEnd();
  return `${rows.map(line).join('\n')}\n`;
}
