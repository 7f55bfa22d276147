#!/usr/bin/env node
/**
 * The program `sluice-operator`, as `kubectl sluice` too: options in, the operator until a signal or one command of a
 * person, an exit code. The only place that exits.
 */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { pino } from 'pino';
import { SluiceError } from '../../runtime/errors.ts';
import { loadOperatorConfig, processSources } from '../config.ts';
import { createKubeClient } from '../kube/rest-client.ts';
import { readCommandLine } from './command-line.ts';
import { helpText } from './help.ts';
import { runCommand } from './run-command.ts';
import { runOperator } from './run-operator.ts';

async function main(): Promise<number> {
  const sources = processSources();
  if (sources.argv.includes('--help') || sources.argv.includes('-h')) {
    process.stdout.write(helpText());
    return 0;
  }
  if (sources.argv.includes('--version')) {
    process.stdout.write(`sluice-operator ${packageVersion()}\n`);
    return 0;
  }
  const commandLine = readCommandLine(sources.argv);
  if (commandLine !== undefined) {
    const { said, warnings } = await runCommand(commandLine);
    for (const warning of warnings) process.stderr.write(`Warning: ${warning}\n`);
    process.stdout.write(`${said}\n`);
    return 0;
  }
  const config = loadOperatorConfig(sources);
  const log = pino({ level: config.logLevel, base: { version: packageVersion() } });
  const client = createKubeClient({
    userAgent: 'sluice-operator',
    ...(config.kubeconfig === undefined ? {} : { kubeconfig: config.kubeconfig }),
    onWarning: (warning) => log.warn({ warning }, 'the API server warns'),
  });
  const stop = new AbortController();
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    // The second one ends the process as it would any other.
    process.once(signal, () => {
      log.info({ signal }, 'stopping');
      stop.abort();
    });
  }
  const namespace = config.namespace ?? client.namespace ?? 'default';
  try {
    await runOperator({ config, client, namespace, log, signal: stop.signal });
  } finally {
    client.close();
  }
  return 0;
}

/** package.json lies above both the checkout's operator/ and the package's dist/operator/. */
function packageVersion(): string {
  for (let folder = import.meta.dirname; folder !== path.dirname(folder); folder = path.dirname(folder)) {
    try {
      return JSON.parse(readFileSync(path.join(folder, 'package.json'), 'utf8')).version;
    } catch {}
  }
  return 'unknown';
}

try {
  process.exitCode = await main();
} catch (error) {
  const known = error instanceof SluiceError;
  const { code = '', address = '', port = '' } = error as { code?: string; address?: string; port?: number };
  if (known) process.stderr.write(`sluice-operator: ${error.message}\n`);
  else if (code === 'EADDRINUSE') {
    process.stderr.write(
      `sluice-operator: ${address}:${port} is taken by another program; give --health-port and --metrics-port others, for example --health-port 0 --metrics-port 0\n`,
    );
    process.exitCode = 2;
  } else process.stderr.write(`sluice-operator: ${(error as Error).stack}\n`);
  process.exitCode ||= known ? error.exitCode : 1;
  process.exit();
}
