/**
 * A table of options -> values, from flags, environment, a YAML file and defaults, in that order of precedence.
 * Enters: a table, argv, env. Leaves: plain values, or SluiceError `config_invalid` in one line.
 * Must not know what any option means, nor read process.env itself.
 */
import { readFileSync } from 'node:fs';
import { parse as parseYaml } from 'yaml';
import type { z } from 'zod';
import { SluiceError } from '../errors.ts';

/** `list` is repeatable and split at commas; `texts` is repeatable and taken as it is. */
export type OptionKind = 'string' | 'integer' | 'number' | 'bytes' | 'seconds' | 'boolean' | 'list' | 'texts';

export interface Option<S extends z.ZodType = z.ZodType> {
  /** Without the dashes: `model-path`. Also the key in the YAML file. */
  readonly flag: string;
  /** How its text is read. */
  readonly kind: OptionKind;
  /** What a value must be, once read. */
  readonly schema: S;
  readonly group: string;
  readonly description: string;
  /** The form expected, for messages: `an integer from 1 to 65535`. */
  readonly form: string;
  readonly example: string;
  /** Absent: the option has no value unless given one. */
  readonly default?: z.output<S>;
  /** What happens without the option, where `default` does not tell. */
  readonly defaultText?: string;
  /** The environment variable, or null where the option is for one call only. */
  readonly env: string | null;
  /** Its name in an InferenceService's `spec.runtime`; absent: not settable there. */
  readonly spec?: string;
}

export type OptionTable = Readonly<Record<string, Option>>;

export type OptionValues<T extends OptionTable> = {
  readonly [K in keyof T]: T[K] extends { readonly default: z.output<T[K]['schema']> }
    ? z.output<T[K]['schema']>
    : z.output<T[K]['schema']> | undefined;
};

export interface OptionSources {
  readonly argv: readonly string[];
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Options of other commands: their variables and file keys are no mistakes here. */
  readonly others?: OptionTable;
  /** Variables with these prefixes belong to other programs. */
  readonly foreignEnvPrefixes?: readonly string[];
  readonly readFile?: (path: string) => string;
}

export const envPrefix = 'SLUICE_';
export const configFlag = 'config';

/** Throws SluiceError `config_invalid` for the first thing that is wrong. */
export function readOptions<T extends OptionTable>(table: T, sources: OptionSources): OptionValues<T> {
  const flags = readFlags(table, sources.argv);
  checkEnvironment({ ...sources.others, ...table }, sources);
  const file = readConfigFile(table, flags, sources);
  const values: Record<string, unknown> = {};
  for (const [key, option] of Object.entries(table)) {
    const variable = option.env === null ? undefined : ownVariable(option.env, sources.env);
    const flag = flags.get(option.flag);
    if (flag !== undefined) values[key] = convert(option, flag.texts, flag.name);
    else if (variable !== undefined) values[key] = convert(option, [variable], option.env ?? '');
    else if (file.values.has(option.flag))
      values[key] = convertFileValue(option, file.values.get(option.flag), `${file.path}: ${option.flag}`);
    else values[key] = option.default;
  }
  return Object.freeze(values) as OptionValues<T>;
}

const isRepeatable = ({ kind }: Option) => kind === 'list' || kind === 'texts';

interface GivenFlag {
  readonly name: string;
  readonly texts: string[];
}

function readFlags(table: OptionTable, argv: readonly string[]): Map<string, GivenFlag> {
  const byName = new Map(Object.values(table).map((option) => [option.flag, option]));
  const given = new Map<string, GivenFlag>();
  for (let index = 0; index < argv.length; index++) {
    const argument = argv[index]!;
    if (!argument.startsWith('--') || argument === '--')
      throw invalid(`${quote(argument)}: unexpected argument; options have the form --flag value`);
    const equals = argument.indexOf('=');
    const name = argument.slice(2, equals < 0 ? undefined : equals);
    let text = equals < 0 ? undefined : argument.slice(equals + 1);
    let option = byName.get(name);
    let flag = name;
    if (option === undefined && name.startsWith('no-')) {
      option = byName.get(name.slice(3));
      if (option?.kind !== 'boolean') option = undefined;
      else {
        if (text !== undefined)
          throw invalid(`--${name} ${quote(text)}: takes no value, write --${name} alone`);
        flag = name.slice(3);
        text = 'false';
      }
    }
    if (option === undefined && name === configFlag) {
      option = configOption;
    }
    if (option === undefined) {
      const names = [...byName.values()].flatMap((known) =>
        known.kind === 'boolean' ? [known.flag, `no-${known.flag}`] : [known.flag],
      );
      const hint = nearest(name, [...names, configFlag]);
      throw invalid(
        `--${name}: unknown flag${hint === undefined ? '' : `; did you mean --${hint}?`} (--help lists all)`,
      );
    }
    if (text === undefined && option.kind === 'boolean') text = 'true';
    if (text === undefined) {
      const next = argv[index + 1];
      if (next === undefined || next.startsWith('--'))
        throw invalid(
          `--${name}: the value is missing; the form is ${option.form}, for example --${name} ${option.example}`,
        );
      text = next;
      index++;
    }
    const earlier = given.get(flag);
    if (earlier === undefined) given.set(flag, { name: `--${name}`, texts: [text] });
    else if (isRepeatable(option)) earlier.texts.push(text);
    else
      throw invalid(
        `--${name} ${quote(text)}: given twice (before: ${quote(earlier.texts[0]!)}); give it once, for example --${name} ${option.example}`,
      );
  }
  return given;
}

/** Every option file is named by a flag or a variable; the file itself cannot name another. */
const configOption: Option = {
  flag: configFlag,
  kind: 'string',
  schema: undefined as never,
  group: 'General',
  description: 'A YAML file of options; its keys are the flags without the dashes.',
  form: 'a path to a YAML file',
  example: '/etc/sluice/config.yaml',
  env: `${envPrefix}CONFIG`,
};

/**
 * Kubernetes gives every pod variables for the Services of its namespace: a Service `sluice` gives
 * `SLUICE_PORT=tcp://10.0.0.1:80`. Those are nobody's options.
 */
function isServiceLink(name: string, value: string): boolean {
  if (/_SERVICE_HOST$|_SERVICE_PORT(_[A-Z0-9_]+)?$/.test(name)) return true;
  if (/_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$/.test(name)) return true;
  return name.endsWith('_PORT') && /^(tcp|udp|sctp):\/\//.test(value);
}

/** A variable's value; an empty one counts as absent, as templates render it. */
function ownVariable(name: string, env: OptionSources['env']): string | undefined {
  const value = env[name];
  return value === undefined || value === '' || isServiceLink(name, value) ? undefined : value;
}

function checkEnvironment(known: OptionTable, { env, foreignEnvPrefixes = [] }: OptionSources): void {
  const names = new Set(Object.values(known).flatMap((option) => option.env ?? []));
  names.add(`${envPrefix}CONFIG`);
  for (const [name, value] of Object.entries(env)) {
    if (!name.startsWith(envPrefix) || value === undefined || names.has(name)) continue;
    if (foreignEnvPrefixes.some((prefix) => name.startsWith(prefix)) || isServiceLink(name, value)) continue;
    const hint = nearest(name, names);
    throw invalid(
      `${name} ${quote(value)}: unknown environment variable${hint === undefined ? '' : `; did you mean ${hint}?`}`,
    );
  }
}

function readConfigFile(
  table: OptionTable,
  flags: ReadonlyMap<string, GivenFlag>,
  { env, others = {}, readFile = (name) => readFileSync(name, 'utf8') }: OptionSources,
): { path: string; values: ReadonlyMap<string, unknown> } {
  const flag = flags.get(configFlag);
  const path = flag?.texts[0] ?? ownVariable(`${envPrefix}CONFIG`, env);
  if (path === undefined) return { path: '', values: new Map() };
  const label = `${flag === undefined ? `${envPrefix}CONFIG` : '--config'} ${quote(path)}`;
  let document: unknown;
  try {
    document = parseYaml(readFile(path)) ?? {};
  } catch (cause) {
    throw invalid(`${label}: cannot be read as YAML: ${firstLine(cause)}`, cause);
  }
  if (typeof document !== 'object' || document === null || Array.isArray(document))
    throw invalid(
      `${label}: holds ${describe(document)}; the form is a mapping of options, for example port: 8000`,
    );
  const own = new Set(Object.values(table).map((option) => option.flag));
  const names = new Set([...own, ...Object.values(others).map((option) => option.flag)]);
  const values = new Map<string, unknown>();
  for (const [key, value] of Object.entries(document)) {
    if (!names.has(key)) {
      const hint = nearest(key, names);
      throw invalid(`${path}: ${key}: unknown option${hint === undefined ? '' : `; did you mean ${hint}?`}`);
    }
    if (own.has(key) && value !== null) values.set(key, value);
  }
  return { path, values };
}

function convertFileValue(option: Option, value: unknown, label: string): unknown {
  const items = isRepeatable(option) && Array.isArray(value) ? value : [value];
  if (items.some((item) => typeof item === 'object'))
    throw invalid(`${label} ${describe(value)}: the form is ${option.form}, for example ${option.example}`);
  return convert(option, items.map(String), label);
}

const byteUnits: Readonly<Record<string, number>> = {
  '': 1,
  k: 1e3,
  m: 1e6,
  g: 1e9,
  ki: 1024,
  mi: 1024 ** 2,
  gi: 1024 ** 3,
};

/** Text -> the value before validation; text that has not even the form goes on as it is, for the schema to refuse. */
function readText(kind: OptionKind, texts: readonly string[]): unknown {
  if (kind === 'texts') return texts;
  if (kind === 'list') return texts.flatMap((text) => text.split(',')).map((item) => item.trim());
  const text = texts[0]!;
  switch (kind) {
    case 'integer':
      return /^-?\d+$/.test(text) ? Number(text) : text;
    case 'seconds':
      return /^-?\d+s?$/.test(text) ? Number.parseInt(text, 10) : text;
    case 'number':
      return /^-?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text) ? Number(text) : text;
    case 'bytes': {
      const [, digits, unit = ''] = /^(\d+)\s*([kmg]i?)?b?$/i.exec(text) ?? [];
      return digits === undefined ? text : Number(digits) * byteUnits[unit.toLowerCase()]!;
    }
    case 'boolean':
      return /^(true|1)$/i.test(text) ? true : /^(false|0)$/i.test(text) ? false : text;
    default:
      return text;
  }
}

function convert(option: Option, texts: readonly string[], label: string): unknown {
  const result = option.schema.safeParse(readText(option.kind, texts));
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  // A schema's own refinement may know better than the general form why the value is refused.
  const reason = issue?.code === 'custom' ? issue.message : `the form is ${option.form}`;
  const example = reason.includes('for example') ? '' : `, for example ${option.example}`;
  throw invalid(`${label} ${quote(texts.join(','))}: ${reason}${example}`);
}

function invalid(message: string, cause?: unknown): SluiceError {
  return new SluiceError('config_invalid', message, { cause });
}

/** One line whatever the value holds, and of bounded length. */
function quote(text: string): string {
  const json = JSON.stringify(text);
  return json.length <= 200 ? json : `${json.slice(0, 197)}..."`;
}

function describe(value: unknown): string {
  return quote(typeof value === 'string' ? value : JSON.stringify(value)).replace(/^"|"$/g, '');
}

function firstLine(cause: unknown): string {
  return (cause instanceof Error ? cause.message : String(cause)).split('\n')[0]!.replace(/:$/, '');
}

/** The name that a typing error away from `name`, or undefined when nothing is near. */
export function nearest(name: string, candidates: Iterable<string>): string | undefined {
  let best: string | undefined;
  let bestDistance = Math.max(2, Math.floor(name.length / 3)) + 1;
  for (const candidate of candidates) {
    const distance = editDistance(name, candidate);
    if (distance < bestDistance) {
      best = candidate;
      bestDistance = distance;
    }
  }
  return best;
}

/** Levenshtein's distance with swaps of neighbours (optimal string alignment). */
function editDistance(a: string, b: string): number {
  let before: number[] = [];
  let previous = Array.from({ length: b.length + 1 }, (_, column) => column);
  for (let row = 1; row <= a.length; row++) {
    const current = [row];
    for (let column = 1; column <= b.length; column++) {
      const same = a[row - 1] === b[column - 1] ? 0 : 1;
      let cost = Math.min(previous[column]! + 1, current[column - 1]! + 1, previous[column - 1]! + same);
      if (row > 1 && column > 1 && a[row - 1] === b[column - 2] && a[row - 2] === b[column - 1])
        cost = Math.min(cost, before[column - 2]! + 1);
      current.push(cost);
    }
    before = previous;
    previous = current;
  }
  return previous[b.length]!;
}
