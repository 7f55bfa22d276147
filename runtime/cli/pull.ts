/** `sluice pull`: a model from the hub into the cache that it shares with other tools; prints the folder. */
import { loadConfig, type RuntimeOptionName, runtimeOptions } from '../config.ts';
import { SluiceError } from '../errors.ts';
import { type Command, commandHelp } from './help.ts';
import { isRepository, locateModel } from './locate-model.ts';
import { modelFirst } from './positional.ts';
import { progressView } from './progress.ts';

const own: readonly RuntimeOptionName[] = ['huggingfaceRevision'];
const others = (Object.keys(runtimeOptions) as RuntimeOptionName[]).filter(
  (name) => name !== 'modelPath' && !own.includes(name),
);

function pullHelp(): string {
  return commandHelp({
    usage: 'sluice pull <org/name> [options]',
    about: [
      'Downloads what serving the model needs (configuration, tokenizer, weights) and prints its folder. What is already there is not downloaded again; a download that was broken off goes on where it stopped.',
      'The cache is the one of all Hugging Face tools: HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub. HF_TOKEN, HF_TOKEN_PATH, HF_ENDPOINT, HF_HUB_OFFLINE, HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE and NODE_EXTRA_CA_CERTS are honoured.',
    ],
    options: Object.fromEntries(own.map((name) => [name, runtimeOptions[name]])),
    examples: [
      'sluice pull Qwen/Qwen3-0.6B',
      'HF_TOKEN=hf_abc123 sluice pull meta-llama/Llama-3.2-1B --huggingface-revision main',
    ],
  });
}

async function pull(argv: readonly string[]): Promise<void> {
  const given = modelFirst('pull', argv, 'org/name', 'Qwen/Qwen3-0.6B');
  const config = loadConfig({ argv: given, env: process.env }, undefined, others);
  if (!isRepository(config.modelPath!)) {
    throw new SluiceError(
      'config_invalid',
      `sluice pull ${JSON.stringify(config.modelPath)}: the form is org/name, for example sluice pull Qwen/Qwen3-0.6B`,
    );
  }
  const view = progressView(process.stderr);
  const { path } = await locateModel(config, {
    onProgress: (progress) => view.update(progress),
    onWarning: (message) => void process.stderr.write(`warning: ${message}\n`),
  });
  view.end();
  process.stdout.write(`${path}\n`);
}

export const pullCommand: Command = { help: pullHelp, run: pull };
