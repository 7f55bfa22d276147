/** The command line of `npm start`. In: arguments. Out: options, or what is wrong with them. */
import { parseArgs } from 'node:util';
import { SluiceError } from '../../runtime/errors.ts';

export interface StartOptions {
  readonly help: boolean;
  readonly gpus: number;
  readonly hostPorts: boolean;
}

export const help = `npm start -- [options]

Starts a Kubernetes cluster on this machine, installs Sluice, and serves the model in examples/models/tiny. The control
plane is the real one (etcd, kube-apiserver, kube-controller-manager, kube-scheduler); the node runs pods as processes.
It stays up until Ctrl-C, and then leaves nothing behind but the cache of built programs.

  --gpus N       GPUs that the node pretends to have, as nvidia.com/gpu (default 2); pods that ask for n of them run
                 on n CPU ranks
  --host-ports   reach Services by ports of 127.0.0.1, also as root; by default root gets a /32 on lo per Service
  --help         this text

Environment
  SLUICE_CACHE_DIR   where the built programs are kept, in sluice/bin (default $XDG_CACHE_HOME, else ~/.cache)
`;

/** As many as one process node takes. */
const maxGpus = 8;

/** Throws SluiceError `config_invalid`. */
export function parseStartOptions(args: readonly string[]): StartOptions {
  const { tokens } = parseArgs({
    args: [...args],
    options: {
      gpus: { type: 'string' },
      'host-ports': { type: 'boolean' },
      help: { type: 'boolean', short: 'h' },
    },
    strict: false,
    tokens: true,
  });
  let options: StartOptions = { help: false, gpus: 2, hostPorts: false };
  for (const token of tokens) {
    if (token.kind === 'option-terminator') continue;
    const written = token.kind === 'positional' ? token.value : token.rawName;
    const name = token.kind === 'option' ? token.name : undefined;
    const value = token.kind === 'option' ? token.value : undefined;
    if (name === 'gpus') options = { ...options, gpus: parseGpus(value) };
    else if (name === 'host-ports' && value === undefined) options = { ...options, hostPorts: true };
    else if (name === 'help' && value === undefined) options = { ...options, help: true };
    else {
      const problem =
        name === 'host-ports' || name === 'help' ? 'takes no value' : 'is not an option of npm start';
      throw new SluiceError(
        'config_invalid',
        `${written}: ${problem}; there are --gpus N, --host-ports and --help, for example npm start -- --gpus 4`,
      );
    }
  }
  return options;
}

function parseGpus(text: string | undefined): number {
  if (text === undefined || !/^\d{1,3}$/.test(text) || Number(text) > maxGpus) {
    throw new SluiceError(
      'config_invalid',
      `--gpus ${JSON.stringify(text ?? '')}: a number from 0 to ${maxGpus} is needed, for example --gpus 4`,
    );
  }
  return Number(text);
}
