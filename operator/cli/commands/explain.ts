/** `explain NAME`: why it is not Ready. Enters: a client, a name. Leaves: text or JSON. */
import type { KubeClient } from '../../kube/client.ts';
import { explain } from '../../plan/explain.ts';
import type { CommandOptions } from '../command-line.ts';
import { getService, observe } from '../observe.ts';

export async function explainCommand(
  client: KubeClient,
  namespace: string,
  name: string,
  { output }: Pick<CommandOptions, 'output'>,
): Promise<string> {
  const service = await getService(client, namespace, name);
  const text = explain(await observe(client, service, new Date()));
  if (output === 'text') return `${text}\n`;
  const { conditions = [], rollout } = service.status ?? {};
  return `${JSON.stringify({ namespace, name, explanation: text, conditions, rollout }, undefined, 2)}\n`;
}
