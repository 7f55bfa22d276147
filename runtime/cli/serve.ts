/** `sluice serve`: listens, loads, serves, ends in order when told to. */
import path from 'node:path';
import { loadConfig, type RuntimeConfig, runtimeOptions } from '../config.ts';
import { collectGarbage } from '../engine/collect-garbage.ts';
import { Server } from '../serve/server.ts';
import { exitWith } from './fail.ts';
import { type Command, commandHelp } from './help.ts';
import { loadModel } from './load-model.ts';
import { chosenModel, isRepository } from './locate-model.ts';
import { createLog } from './log.ts';
import { embeddedModel, packageVersion } from './package-root.ts';
import { progressBar, progressLines } from './progress.ts';
import { boundYoungHeap } from './young-heap.ts';

function serveHelp(): string {
  return commandHelp({
    usage: 'sluice serve [options]',
    about: [
      'Loads a model and answers requests over HTTP: /v1/completions, /v1/chat/completions, /v1/models, /tokenize, /detokenize, /health, /livez, /readyz, /version and /metrics.',
    ],
    options: runtimeOptions,
    examples: [
      'sluice serve',
      'sluice serve --model-path /models/llama --served-model-name chat --port 8000',
      'SLUICE_MODEL_PATH=/models/llama sluice serve --devices cpu:0,1 --max-length 4096',
    ],
  });
}

async function serve(argv: readonly string[]): Promise<void> {
  const config = loadConfig({ argv, env: process.env });
  const { log, flush } = createLog(config.logLevel);
  process.on('exit', flush);
  const modelPath = chosenModel(config);
  const servedNames = config.servedModelName ?? defaultNames(modelPath);
  const server = new Server({ config, servedNames, modelPath, version: packageVersion, log });
  try {
    await server.listen();
    endOnSignals(server, config, log);
    if (config.modelPath === undefined && modelPath === embeddedModel)
      log.warn({ modelPath }, 'no --model-path: serving the small demo model that comes with Sluice');
    const { url, metricsUrl } = server;
    log.info(
      { url, ...(metricsUrl === url ? {} : { metricsUrl }), version: packageVersion },
      'listening; the model is loading',
    );
    const view = process.stdout.isTTY
      ? progressBar(process.stdout)
      : progressLines((fields) => log.info(fields, 'loading'));
    const startedMs = performance.now();
    const backend = await loadModel(config, {
      onProgress: (progress) => {
        server.reportProgress(progress);
        view.update(progress);
      },
      onWarning: (message) => log.warn(message),
      onFailure: (error) => {
        log.fatal({ reason: error.message }, 'the engine has failed: ending, so that it is started anew');
        server.fail(failureSeenMs).then(() => {
          flush();
          exitWith(error);
        }, exitWith);
      },
    });
    view.end();
    collectGarbage();
    boundYoungHeap();
    server.ready(backend);
    const seconds = Number(((performance.now() - startedMs) / 1000).toFixed(1));
    log.info({ url, models: servedNames, seconds, ...backend.details }, 'ready');
  } catch (error) {
    // The line that tells why must be the last.
    flush();
    exitWith(error);
  }
}

/** Time for probes to see the failure, and for those who waited to be told. */
const failureSeenMs = 3000;

/** The folder's own name, and the path as it was given, which other servers use; the latter first for a hub model. */
function defaultNames(modelPath: string): string[] {
  if (isRepository(modelPath)) return [modelPath, path.basename(modelPath)];
  const name = path.basename(path.resolve(modelPath));
  return name === modelPath || modelPath === embeddedModel ? [name] : [name, modelPath];
}

/** The first SIGTERM or SIGINT ends in order; a second one ends at once. */
function endOnSignals(server: Server, config: RuntimeConfig, log: ReturnType<typeof createLog>['log']): void {
  let ending = false;
  const end = async (signal: 'SIGTERM' | 'SIGINT') => {
    if (ending) {
      log.warn({ signal }, 'second signal: ending at once');
      process.exit(signal === 'SIGINT' ? 130 : 143);
    }
    ending = true;
    // Ctrl-C comes from a terminal, where no proxy has to learn of the end first.
    const delaySeconds = signal === 'SIGINT' ? 0 : config.shutdownDelay;
    log.info({ signal, delaySeconds, graceSeconds: config.shutdownGrace }, 'shutting down');
    const aborted = await server.shutdown(delaySeconds * 1000, config.shutdownGrace * 1000);
    if (aborted > 0) log.warn({ requests: aborted }, 'requests had not finished within --shutdown-grace');
    log.info('ended');
    process.exit(0);
  };
  process.on('SIGTERM', () => end('SIGTERM').catch(exitWith));
  process.on('SIGINT', () => end('SIGINT').catch(exitWith));
}

export const serveCommand: Command = { help: serveHelp, run: serve };
