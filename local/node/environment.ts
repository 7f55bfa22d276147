/**
 * A container's environment and its command line, from the pod's spec and the ConfigMaps and Secrets it names. In: the
 * pod and a way to read keyed objects; out: names and values. Must not know processes.
 */
import { type PodAddresses, readField, readResource } from './downward.ts';
import type { ContainerSpec, Pod } from './pod-types.ts';

/** A ConfigMap's or Secret's values, decoded; undefined when there is no such object. */
export type KeyedReader = (
  kind: 'ConfigMap' | 'Secret',
  name: string,
) => Promise<Readonly<Record<string, Buffer>> | undefined>;

/** The container cannot be started as its spec stands; the message is what a kubelet says. */
export class ContainerConfigError extends Error {}

export interface EnvironmentContext {
  readonly pod: Pod;
  readonly addresses: PodAddresses;
  readonly allocatable: Readonly<Record<string, string>>;
  readonly read: KeyedReader;
  /** What the image, the node and the devices add; the pod's own come after and win. */
  readonly base: Readonly<Record<string, string>>;
}

/** Throws ContainerConfigError. */
export async function buildEnvironment(
  container: ContainerSpec,
  context: EnvironmentContext,
): Promise<Record<string, string>> {
  const result: Record<string, string> = { ...context.base };
  for (const source of container.envFrom ?? []) {
    for (const [kind, ref] of [
      ['ConfigMap', source.configMapRef],
      ['Secret', source.secretRef],
    ] as const) {
      if (!ref) continue;
      const data = await context.read(kind, ref.name);
      if (!data && !ref.optional) throw notFound(kind, ref.name);
      for (const [key, value] of Object.entries(data ?? {})) {
        result[`${source.prefix ?? ''}${key}`] = value.toString('utf8');
      }
    }
  }
  for (const variable of container.env ?? []) {
    const value = variable.valueFrom
      ? await resolveSource(variable.valueFrom, container, context)
      : expand(variable.value ?? '', result);
    if (value !== undefined) result[variable.name] = value;
  }
  return result;
}

async function resolveSource(
  source: NonNullable<NonNullable<ContainerSpec['env']>[number]['valueFrom']>,
  container: ContainerSpec,
  context: EnvironmentContext,
): Promise<string | undefined> {
  if (source.fieldRef) {
    const { fieldPath } = source.fieldRef;
    const value = readField(context.pod, fieldPath, context.addresses);
    if (value === undefined) throw new ContainerConfigError(`fieldRef: no value for "${fieldPath}"`);
    return value;
  }
  if (source.resourceFieldRef) {
    const value = readResource(context.pod, source.resourceFieldRef, container.name, context.allocatable);
    if (value === undefined) {
      throw new ContainerConfigError(`resourceFieldRef: no value for "${source.resourceFieldRef.resource}"`);
    }
    return value;
  }
  for (const [kind, ref] of [
    ['ConfigMap', source.configMapKeyRef],
    ['Secret', source.secretKeyRef],
  ] as const) {
    if (!ref) continue;
    const data = await context.read(kind, ref.name);
    const value = data?.[ref.key];
    if (value !== undefined) return value.toString('utf8');
    if (ref.optional) return undefined;
    if (!data) throw notFound(kind, ref.name);
    throw new ContainerConfigError(
      `couldn't find key ${ref.key} in ${kind} ${context.pod.metadata.namespace}/${ref.name}`,
    );
  }
  return undefined;
}

function notFound(kind: 'ConfigMap' | 'Secret', name: string): ContainerConfigError {
  return new ContainerConfigError(`${kind.toLowerCase()} "${name}" not found`);
}

/** $(NAME) becomes the value, $$ a dollar sign; a name without a value stays as it is written. */
export function expand(text: string, values: Readonly<Record<string, string>>): string {
  return text.replace(/\$(\$|\(([^)]*)\))/g, (whole, next: string, name: string | undefined) => {
    if (next === '$') return '$';
    return name !== undefined && Object.hasOwn(values, name) ? values[name]! : whole;
  });
}
