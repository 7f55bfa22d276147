#!/usr/bin/env node
/** The program: `sluice <command> [options]`. Only this room ends the process. */
import { nearest } from '../config/options.ts';
import { SluiceError } from '../errors.ts';
import { exitWith } from './fail.ts';
import { type Command, programHelp } from './help.ts';
import { packageVersion } from './package-root.ts';

const version: Command = {
  help: () => 'Usage: sluice version\n\nPrints the version.\n',
  run: async (argv) => {
    if (argv.length > 0)
      throw new SluiceError('config_invalid', `${JSON.stringify(argv[0])}: version takes no options`);
    process.stdout.write(`${packageVersion}\n`);
  },
};

/** Read when asked for: the server's and the engine's modules take longer than most answers here. */
const commands: Readonly<Record<string, () => Promise<Command>>> = {
  serve: async () => (await import('./serve.ts')).serveCommand,
  generate: async () => (await import('./generate.ts')).generateCommand,
  pull: async () => (await import('./pull.ts')).pullCommand,
  inspect: async () => (await import('./inspect.ts')).inspectCommand,
  resolve: async () => (await import('./resolve.ts')).resolveCommand,
  models: async () => (await import('./models.ts')).modelsCommand,
  version: async () => version,
};

const isHelp = (argument: string | undefined) => argument === '--help' || argument === '-h';

async function main([name, ...argv]: readonly string[]): Promise<void> {
  if (name === undefined || isHelp(name) || name === 'help') {
    const about = await commands[argv[0] ?? '']?.();
    process.stdout.write(about?.help() ?? programHelp);
    return;
  }
  const load = commands[name === '--version' ? 'version' : name];
  if (load === undefined) {
    const hint = nearest(name, Object.keys(commands));
    throw new SluiceError(
      'config_invalid',
      `${JSON.stringify(name)}: unknown command${hint === undefined ? '' : `; did you mean ${hint}?`} (sluice --help lists all)`,
    );
  }
  const command = await load();
  if (argv.some(isHelp)) process.stdout.write(command.help());
  else await command.run(argv);
}

main(process.argv.slice(2)).catch(exitWith);
