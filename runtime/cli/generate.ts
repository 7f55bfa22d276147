/** `sluice generate`: one answer to the terminal, numbers on stderr. */
import { text } from 'node:stream/consumers';
import { z } from 'zod';
import type { Option } from '../config/options.ts';
import { loadConfig, type RuntimeOptionName, runtimeOptions } from '../config.ts';
import { SluiceError } from '../errors.ts';
import { defaultSampling } from '../sampling/parameters.ts';
import type { Backend } from '../serve/backend.ts';
import { answerLimit } from '../serve/sampling-request.ts';
import { encodeChat, encodeTexts } from '../tokenizer/words.ts';
import { type Command, commandHelp } from './help.ts';
import { loadModel } from './load-model.ts';
import { chosenModel } from './locate-model.ts';
import { embeddedModel } from './package-root.ts';
import { progressView } from './progress.ts';

/** Options of the server, which have nothing to say here. */
const serverOnly: readonly RuntimeOptionName[] = [
  'servedModelName',
  'host',
  'port',
  'metricsPort',
  'apiKeyFile',
  'maxBodyBytes',
  'maxQueueSize',
  'requestTimeout',
  'shutdownDelay',
  'shutdownGrace',
  'logLevel',
];

const answer = { group: 'Answer', env: null };

const generateOptions = {
  prompt: {
    ...answer,
    flag: 'prompt',
    kind: 'string',
    schema: z.string().min(1),
    description: 'The text to go on from, or the message to answer; - reads it from standard input.',
    form: 'a text, or - for standard input',
    example: '"What is Kubernetes?"',
    defaultText: 'none, it must be given',
  },
  system: {
    ...answer,
    flag: 'system',
    kind: 'string',
    schema: z.string().min(1),
    description: 'A system message before the prompt.',
    form: 'a text',
    example: '"You are brief."',
  },
  chat: {
    ...answer,
    flag: 'chat',
    kind: 'boolean',
    schema: z.boolean(),
    description: "Put the prompt as a user's message into the model's chat template.",
    form: 'true or false',
    example: '--no-chat',
    defaultText: 'yes, if the model has a chat template',
  },
  maxNewTokens: {
    ...answer,
    flag: 'max-new-tokens',
    kind: 'integer',
    schema: z.int().min(1).max(16_777_216),
    description: 'Most tokens of the answer.',
    form: 'an integer from 1',
    example: '128',
    defaultText: 'what the context leaves',
  },
  temperature: {
    ...answer,
    flag: 'temperature',
    kind: 'number',
    schema: z.number().min(0).max(2),
    description: 'How freely tokens are chosen; 0 takes the most likely one.',
    form: 'a number from 0 to 2',
    example: '0.7',
    defaultText: "the model's own, else 0",
  },
  topP: {
    ...answer,
    flag: 'top-p',
    kind: 'number',
    schema: z.number().gt(0).max(1),
    description: 'Only the likeliest tokens that together have this probability.',
    form: 'a number above 0, at most 1',
    example: '0.9',
    defaultText: "the model's own, else 1",
  },
  topK: {
    ...answer,
    flag: 'top-k',
    kind: 'integer',
    schema: z.int().min(0).max(1_000_000),
    description: 'Only so many of the likeliest tokens; 0 is all.',
    form: 'an integer from 0',
    example: '40',
    defaultText: "the model's own, else 0",
  },
  minP: {
    ...answer,
    flag: 'min-p',
    kind: 'number',
    schema: z.number().min(0).max(1),
    description: 'Only tokens at least this likely beside the likeliest.',
    form: 'a number from 0 to 1',
    example: '0.05',
    defaultText: "the model's own, else 0",
  },
  seed: {
    ...answer,
    flag: 'seed',
    kind: 'integer',
    schema: z.int(),
    description: 'Makes random choices repeatable.',
    form: 'an integer',
    example: '7',
    defaultText: 'another one each time',
  },
  stop: {
    ...answer,
    flag: 'stop',
    kind: 'texts',
    schema: z.array(z.string().min(1)).max(64),
    description: 'A text that ends the answer. Repeatable.',
    form: 'a text',
    example: '"\\n\\n"',
  },
  ignoreEos: {
    ...answer,
    flag: 'ignore-eos',
    kind: 'boolean',
    schema: z.boolean(),
    description: 'Go on after the end token, up to --max-new-tokens.',
    form: 'true or false',
    example: '--ignore-eos',
    default: false,
    defaultText: 'no',
  },
} as const satisfies Record<string, Option>;

function generateHelp(): string {
  const shared = Object.entries(runtimeOptions).filter(
    ([key]) => !serverOnly.includes(key as RuntimeOptionName),
  );
  return commandHelp({
    usage: 'sluice generate --prompt <text> [options]',
    about: [
      'Loads a model and writes one answer to standard output as it comes; numbers go to standard error.',
    ],
    options: { ...generateOptions, ...Object.fromEntries(shared) },
    examples: [
      'sluice generate --prompt "What is Kubernetes?"',
      'sluice generate --model-path /models/llama --no-chat --prompt "Once upon a time" --max-new-tokens 64',
      'cat question.txt | sluice generate --prompt -',
    ],
  });
}

async function generate(argv: readonly string[]): Promise<void> {
  const config = loadConfig({ argv, env: process.env }, generateOptions, serverOnly);
  if (config.prompt === undefined)
    throw new SluiceError(
      'config_invalid',
      '--prompt: missing; the form is a text, for example --prompt "What is Kubernetes?"',
    );
  const prompt = config.prompt === '-' ? await text(process.stdin) : config.prompt;
  if (config.modelPath === undefined && chosenModel(config) === embeddedModel)
    process.stderr.write('no --model-path: using the small demo model that comes with Sluice\n');
  const view = progressView(process.stderr);
  const loadStart = performance.now();
  const backend = await loadModel(config, {
    onProgress: (progress) => view.update(progress),
    onWarning: (message) => void process.stderr.write(`warning: ${message}\n`),
  });
  view.end();
  const loadMs = performance.now() - loadStart;
  try {
    const ids = promptIds(backend, prompt, config);
    await writeAnswer(backend, ids, config, loadMs);
  } finally {
    await backend.close();
  }
}

type GenerateConfig = ReturnType<typeof loadConfig<typeof generateOptions>>;

function promptIds(backend: Backend, prompt: string, { chat, system }: GenerateConfig): number[] {
  const { words } = backend;
  if (chat ?? words.template !== undefined) {
    const messages = [
      ...(system === undefined ? [] : [{ role: 'system', content: system }]),
      { role: 'user', content: prompt },
    ];
    return encodeChat(words, messages, { addSpecialTokens: false });
  }
  if (system !== undefined)
    throw new SluiceError(
      'config_invalid',
      `--system ${JSON.stringify(system)}: only with a chat template; leave it out`,
    );
  return encodeTexts(words, [prompt], { addSpecialTokens: true })[0]!;
}

async function writeAnswer(
  backend: Backend,
  ids: readonly number[],
  config: GenerateConfig,
  loadMs: number,
): Promise<void> {
  const { maxNewTokens, temperature, topP, topK, minP, seed, stop = [], ignoreEos } = config;
  const maxTokens = answerLimit(
    ids.length,
    maxNewTokens,
    Number.POSITIVE_INFINITY,
    backend.maxLength,
    '--max-new-tokens',
  );
  const given = Object.entries({ temperature, topP, topK, minP, seed }).filter(
    ([, value]) => value !== undefined,
  );
  const sampling = {
    ...defaultSampling,
    temperature: 0,
    ...backend.samplingDefaults,
    ...Object.fromEntries(given),
    maxTokens,
    ignoreEos,
  };
  const interrupted = new AbortController();
  process.once('SIGINT', () => interrupted.abort());
  const startMs = performance.now();
  let firstMs = 0;
  let tokens = 0;
  let reason = '';
  for await (const event of backend.generate(
    { id: 'generate', prompt: ids, sampling, stop },
    interrupted.signal,
  )) {
    if (event.type === 'delta') {
      if (tokens === 0 && event.tokenIds.length > 0) firstMs = performance.now();
      tokens += event.tokenIds.length;
      process.stdout.write(event.text);
    } else if (event.type === 'finish') reason = event.reason;
  }
  process.stdout.write('\n');
  const decodeSeconds = (performance.now() - firstMs) / 1000;
  const rate = tokens > 1 && decodeSeconds > 0 ? ((tokens - 1) / decodeSeconds).toFixed(1) : '-';
  process.stderr.write(
    `prompt ${ids.length} tokens, answer ${tokens} tokens (${reason || 'abort'}); loading ${(loadMs / 1000).toFixed(1)} s, ` +
      `time to first token ${tokens > 0 ? Math.round(firstMs - startMs) : '-'} ms, then ${rate} tokens/s\n`,
  );
  if (interrupted.signal.aborted) process.exitCode = 130;
}

export const generateCommand: Command = { help: generateHelp, run: generate };
