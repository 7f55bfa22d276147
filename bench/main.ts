/** `npm run bench [-- <name> [options]]`: picks the benchmark; what follows its name are its own options. */
import { benchExactness } from './exactness.ts';
import { benchHealth } from './health.ts';
import { benchMemory } from './memory.ts';
import { benchOperator } from './operator/main.ts';
import { benchPeers } from './peers/main.ts';
import { benchProfile } from './profile.ts';
import { benchScheduling } from './scheduling.ts';
import { benchSoak } from './soak.ts';
import { benchSteps } from './steps.ts';
import { UsageError } from './whole-number.ts';

interface Bench {
  readonly usage: string;
  readonly does: string;
  readonly run: (argv: readonly string[]) => Promise<void>;
}

const benches: Readonly<Record<string, Bench>> = {
  steps: { usage: 'steps', does: 'step times of the engine alone (default)', run: benchSteps },
  peers: {
    usage:
      'peers [--rounds 5] [--only <part of a name>] [--beside llama.cpp,openvino] [--threads <count>] [--cache <folder>] [--flags "<sluice flags>"] [--write]',
    does: 'Sluice beside llama.cpp and OpenVINO GenAI; --write puts table and chart into docs/',
    run: benchPeers,
  },
  profile: {
    usage: 'profile [model.gguf] [--write]',
    does: "steps beside their floors, and a step's time by kind of node; --write puts both into docs/",
    run: benchProfile,
  },
  scheduling: {
    usage: 'scheduling [folder or GGUF] [--only <part of a name>]',
    does: 'prefix caching, prefix-aware scheduling and chunked prefill, on against off',
    run: benchScheduling,
  },
  exactness: {
    usage: 'exactness [model.gguf] [--write]',
    does: 'greedy answers in other settings beside those of one alone; --write puts what differs into docs/',
    run: benchExactness,
  },
  health: {
    usage: 'health [folder or GGUF] [--seconds 30] [--write]',
    does: '/health while decode is saturated and prompts of 5 MB arrive; --write puts the table into docs/',
    run: benchHealth,
  },
  operator: {
    usage:
      'operator [--services 1000] [--few 10] [--foreign-pods 10000] [--edits 20] [--seconds 120] [--write]',
    does: 'many services beside many pods of others: requests, memory and latency; --write puts the table into docs/',
    run: benchOperator,
  },
  memory: {
    usage: 'memory [--only <part of a name>] [--cache <folder>] [--write]',
    does: 'resident memory beside the file, loading, and the start of sluice generate; --write puts them into docs/',
    run: benchMemory,
  },
  soak: {
    usage: 'soak [requests] [--model <folder or GGUF>] [--write]',
    does: 'resident memory over many requests; --write puts the curve into docs/',
    run: benchSoak,
  },
};

const usageOf = ({ usage, does }: Bench): string => `  npm run bench -- ${usage}\n      ${does}`;
const fail = (message: string): never => {
  console.error(message);
  process.exit(2);
};

/** An option without its value, or with one that is none. */
const isUsageError = (error: unknown): error is Error =>
  error instanceof UsageError ||
  (error instanceof Error && 'code' in error && String(error.code).startsWith('ERR_PARSE_ARGS'));

/** An option and its value as one word: parseArgs takes a value that begins with a dash only so. */
function joinValues(given: readonly string[], usage: string): string[] {
  const isOption = (word: string): boolean => usage.includes(`[${word.split('=')[0]}`);
  const joined: string[] = [];
  for (const word of given) {
    const option = joined.at(-1);
    const takes = option?.startsWith('--') && !option.includes('=') && usage.includes(`[${option} `);
    if (takes && word.startsWith('-') && !isOption(word)) joined.push(`${joined.pop()}=${word}`);
    else joined.push(word);
  }
  return joined;
}

const [name = 'steps', ...argv] = process.argv.slice(2);
const bench = Object.hasOwn(benches, name) ? benches[name] : undefined;
if (name === '--help') console.log(Object.values(benches).map(usageOf).join('\n'));
else if (bench === undefined)
  fail(
    `npm run bench -- ${name}: expected one of ${Object.keys(benches).join(', ')}, for example npm run bench -- peers`,
  );
else if (argv.includes('--help')) console.log(usageOf(bench));
else {
  const words = joinValues(argv, bench.usage);
  const unknown = words.find(
    (word) => word.startsWith('--') && !bench.usage.includes(`[${word.split('=')[0]}`),
  );
  if (unknown !== undefined)
    fail(
      `npm run bench -- ${name} ${unknown}: there is no such option; npm run bench -- ${name} --help lists them`,
    );
  try {
    await bench.run(words);
  } catch (error) {
    if (!isUsageError(error)) throw error;
    fail(`npm run bench -- ${name}: ${error.message}`);
  }
}
