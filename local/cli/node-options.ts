/** The command line of local/cli/node.ts. In: arguments. Out: options, or what is wrong with them. */
import { readFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { SluiceError } from '../../runtime/errors.ts';
import { type CertificateAuthority, readCertificateAuthority } from '../certificates.ts';
import { type ImageTable, runtimeImage } from '../node/images.ts';

export const help = `node local/cli/node.ts [options]

Adds a node to a cluster: a Node object whose pods run as processes of this machine. Runs until Ctrl-C, which ends the
pods' processes. local/node/README.md says what it honours of a pod.

  --kubeconfig FILE     the cluster (default: $KUBECONFIG, then ~/.kube/config)
  --name NAME           the node's name (default: this machine's)
  --gpus N              GPUs that it pretends to have, 0 to 8 (default 0)
  --pki FOLDER          the cluster's ca.crt and ca.key, for "kubectl logs" of this node's pods: pki/ beside the
                        kubeconfig of "npm start"
  --label KEY=VALUE     a label of the Node object; may be repeated
  --runtime-image NAME  an image name that stands for this checkout's runtime; may be repeated
                        (default: sluice-runtime:local)
  --root-dir FOLDER     where pods' files are kept (default: a temporary folder)
  --backoff-ms N        the first wait of a crashing container (default 10000)
  --help                this text

Without --pki "kubectl logs" of its pods needs an API server that accepts a self-signed certificate from nodes (one
without --kubelet-certificate-authority).
`;

export interface NodeOptions {
  readonly kubeconfig?: string;
  readonly authority?: CertificateAuthority;
  readonly name: string;
  readonly gpus: number;
  readonly labels: Readonly<Record<string, string>>;
  readonly images: ImageTable;
  readonly rootDir?: string;
  readonly backoffBaseMs: number;
}

/** Undefined: help was asked for. Throws SluiceError `config_invalid`. */
export function parseNodeOptions(args: readonly string[]): NodeOptions | undefined {
  let values: ReturnType<typeof parse>['values'];
  try {
    values = parse(args).values;
  } catch (error) {
    throw new SluiceError('config_invalid', `${(error as Error).message} --help lists the options`, {
      cause: error,
    });
  }
  if (values.help) return undefined;
  const labels: Record<string, string> = {};
  for (const text of values.label ?? []) {
    const [key, value, ...rest] = text.split('=');
    if (!key || value === undefined || rest.length > 0) {
      throw new SluiceError(
        'config_invalid',
        `--label ${JSON.stringify(text)}: the form is KEY=VALUE, for example --label pool=gpu`,
      );
    }
    labels[key] = value;
  }
  return {
    ...(values.kubeconfig === undefined ? {} : { kubeconfig: values.kubeconfig }),
    ...(values.pki === undefined ? {} : { authority: readAuthority(values.pki) }),
    name: values.name ?? os.hostname().toLowerCase(),
    gpus: integer('--gpus', values.gpus ?? '0', 8, '4'),
    labels,
    images: Object.fromEntries(
      (values['runtime-image'] ?? ['sluice-runtime:local']).map((name) => [name, runtimeImage()]),
    ),
    ...(values['root-dir'] === undefined ? {} : { rootDir: values['root-dir'] }),
    backoffBaseMs: integer('--backoff-ms', values['backoff-ms'] ?? '10000', 600_000, '10000'),
  };
}

function parse(args: readonly string[]) {
  return parseArgs({
    args: [...args],
    options: {
      kubeconfig: { type: 'string' },
      name: { type: 'string' },
      pki: { type: 'string' },
      gpus: { type: 'string' },
      label: { type: 'string', multiple: true },
      'runtime-image': { type: 'string', multiple: true },
      'root-dir': { type: 'string' },
      'backoff-ms': { type: 'string' },
      help: { type: 'boolean', short: 'h' },
    },
  });
}

function readAuthority(folder: string): CertificateAuthority {
  try {
    const read = (file: string) => readFileSync(path.join(folder, file), 'utf8');
    return readCertificateAuthority({ certificatePem: read('ca.crt'), keyPem: read('ca.key') });
  } catch (cause) {
    throw new SluiceError(
      'config_invalid',
      `--pki ${JSON.stringify(folder)}: ca.crt and ca.key of "npm start" are expected there: ${(cause as Error).message}`,
      { cause },
    );
  }
}

function integer(flag: string, text: string, maximum: number, example: string): number {
  if (!/^\d{1,7}$/.test(text) || Number(text) > maximum) {
    throw new SluiceError(
      'config_invalid',
      `${flag} ${JSON.stringify(text)}: the form is an integer from 0 to ${maximum}, for example ${flag} ${example}`,
    );
  }
  return Number(text);
}
