/**
 * The operator's options: flags, SLUICE_OPERATOR_* variables and a YAML file, one table for all three and for the docs.
 * Enters: argv, env. Leaves: an immutable OperatorConfig, or SluiceError `config_invalid` in one line.
 */
import { z } from 'zod';
import { type Option, type OptionValues, readOptions } from '../runtime/config/options.ts';

export const operatorEnvPrefix = 'SLUICE_OPERATOR_';

const text = (maximum: number) => z.string().min(1).max(maximum);
const port = z.int().min(0).max(65535);
const namespaceName = z
  .string()
  .max(63)
  .regex(/^[a-z0-9]([-a-z0-9]*[a-z0-9])?$/);

/** Adds what every option has by its name; keeps the literal types for OperatorConfig. */
function option<const O extends Omit<Option, 'env'>>(fields: O): O & { readonly env: string } {
  return { ...fields, env: operatorEnvPrefix + fields.flag.toUpperCase().replaceAll('-', '_') };
}

export const operatorOptions = {
  kubeconfig: option({
    flag: 'kubeconfig',
    kind: 'string',
    schema: text(4096),
    group: 'Cluster',
    description: 'The kubeconfig file that says where the API server is.',
    form: 'a path to a kubeconfig file',
    example: '~/.kube/config',
    defaultText: "$KUBECONFIG, ~/.kube/config, or the pod's service account",
  }),
  watchNamespaces: option({
    flag: 'watch-namespaces',
    kind: 'list',
    schema: z.array(namespaceName).min(1).max(100),
    group: 'Cluster',
    description:
      'The namespaces whose InferenceServices are looked after. Repeatable, or separated by commas.',
    form: 'names of namespaces, separated by commas',
    example: 'team-a,team-b',
    defaultText: 'all namespaces',
  }),
  namespace: option({
    flag: 'namespace',
    kind: 'string',
    schema: namespaceName,
    group: 'Cluster',
    description: "The namespace that holds the operator's own Lease.",
    form: 'the name of a namespace',
    example: 'sluice-system',
    defaultText: "the pod's, the kubeconfig's, or else default",
  }),
  leaderElect: option({
    flag: 'leader-elect',
    kind: 'boolean',
    schema: z.boolean(),
    group: 'Cluster',
    description:
      'Of several operators only the one that holds the Lease writes. Without it there may be only one.',
    form: 'true or false',
    example: 'true',
    default: true,
  }),
  runtimeImage: option({
    flag: 'runtime-image',
    kind: 'string',
    schema: z.string().min(1).max(1024).regex(/^\S+$/),
    group: 'Services',
    description:
      'The image for new revisions of InferenceServices that name none. Revisions that exist keep the image they have.',
    form: 'an image reference',
    example: 'registry.example/sluice-runtime:0.1.0',
    default: 'sluice-runtime:0.1.0',
  }),
  workers: option({
    flag: 'workers',
    kind: 'integer',
    schema: z.int().min(1).max(64),
    group: 'Services',
    description: 'How many InferenceServices are reconciled at the same time.',
    form: 'an integer from 1 to 64',
    example: '4',
    default: 4,
  }),
  host: option({
    flag: 'host',
    kind: 'string',
    schema: text(253),
    group: 'Observation',
    description: 'The address that the ports below listen on.',
    form: 'an IP address or a host name',
    example: '127.0.0.1',
    default: '0.0.0.0',
  }),
  healthPort: option({
    flag: 'health-port',
    kind: 'integer',
    schema: port,
    group: 'Observation',
    description: 'The port of /livez and /readyz; 0 picks a free one and logs it.',
    form: 'an integer from 0 to 65535',
    example: '8081',
    default: 8081,
  }),
  metricsPort: option({
    flag: 'metrics-port',
    kind: 'integer',
    schema: port,
    group: 'Observation',
    description: 'The port of /metrics; 0 picks a free one and logs it.',
    form: 'an integer from 0 to 65535',
    example: '8080',
    default: 8080,
  }),
  logLevel: option({
    flag: 'log-level',
    kind: 'string',
    schema: z.enum(['debug', 'info', 'warn', 'error']),
    group: 'Observation',
    description: 'The least important messages that are logged.',
    form: 'one of debug, info, warn, error',
    example: 'info',
    default: 'info',
  }),
};

export type OperatorConfig = OptionValues<typeof operatorOptions>;

export interface ConfigSources {
  readonly argv: readonly string[];
  readonly env: Readonly<Record<string, string | undefined>>;
}

/** Throws SluiceError `config_invalid`. */
export function loadOperatorConfig({ argv, env }: ConfigSources): OperatorConfig {
  // The runtime's variables may be in the same environment; they are none of ours.
  const own = Object.entries(env).filter(([name]) => name.startsWith(operatorEnvPrefix));
  return readOptions(operatorOptions, { argv, env: Object.fromEntries(own) });
}

/** The command line and environment of this process. */
export function processSources(): ConfigSources {
  return { argv: process.argv.slice(2), env: process.env };
}
