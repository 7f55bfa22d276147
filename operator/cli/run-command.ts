/**
 * Carries out one command of a person. Enters: the command line. Leaves: text on standard output and warnings on standard
 * error; throws SluiceError for what a person can put right.
 */
import { SluiceError } from '../../runtime/errors.ts';
import { type KubeClient, KubeError } from '../kube/client.ts';
import { createKubeClient } from '../kube/rest-client.ts';
import type { CommandLine } from './command-line.ts';
import { holdCommand, type Said, undoCommand } from './commands/by-hand.ts';
import { explainCommand } from './commands/explain.ts';
import { historyCommand } from './commands/history.ts';
import { planCommand } from './commands/plan.ts';

export async function runCommand(line: CommandLine): Promise<Said> {
  const { command, options } = line;
  if (command === 'plan' && options.offline) {
    const namespace = options.namespace ?? 'default';
    return said(await planCommand(options, { namespace, now: new Date() }));
  }
  const { kubeconfig, context } = options;
  const client = createKubeClient({
    userAgent: 'sluice-cli',
    ...(kubeconfig === undefined ? {} : { kubeconfig }),
    ...(context === undefined ? {} : { context }),
  });
  try {
    return await carryOut(line, client, options.namespace ?? client.namespace ?? 'default');
  } catch (error) {
    if (error instanceof KubeError) throw inWords(error);
    throw error;
  } finally {
    client.close();
  }
}

async function carryOut(
  { command, name, options }: CommandLine,
  client: KubeClient,
  namespace: string,
): Promise<Said> {
  switch (command) {
    case 'plan':
      return said(await planCommand(options, { client, namespace, now: new Date() }));
    case 'explain':
      return said(await explainCommand(client, namespace, name, options));
    case 'history':
      return said(await historyCommand(client, namespace, name, options));
    case 'undo':
      return await undoCommand(client, namespace, name, options);
    default:
      return await holdCommand(client, namespace, name, command);
  }
}

function said(text: string): Said {
  return { said: text.trimEnd(), warnings: [] };
}

/** An object that is refused is the person's to correct; anything else may pass. */
function inWords(error: KubeError): SluiceError {
  const code = [400, 403, 404, 422].includes(error.status) ? 'config_invalid' : 'unavailable';
  const message = error.message.split('\n').join(' ');
  return new SluiceError(code, `the API server says: ${message}`, { cause: error });
}
