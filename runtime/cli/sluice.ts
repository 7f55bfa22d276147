#!/usr/bin/env node
/** The program: `sluice <command> [options]`. Only this room ends the process. */
import { nearest } from '../config/options.ts';
import { SluiceError } from '../errors.ts';
import { exitWith } from './fail.ts';
import { generate, generateHelp } from './generate.ts';
import { programHelp } from './help.ts';
import { packageVersion } from './package-root.ts';
import { serve, serveHelp } from './serve.ts';

const commands: Readonly<Record<string, { help(): string; run(argv: readonly string[]): Promise<void> }>> = {
  serve: { help: serveHelp, run: serve },
  generate: { help: generateHelp, run: generate },
  version: {
    help: () => 'Usage: sluice version\n\nPrints the version.\n',
    run: async (argv) => {
      if (argv.length > 0)
        throw new SluiceError('config_invalid', `${JSON.stringify(argv[0])}: version takes no options`);
      process.stdout.write(`${packageVersion}\n`);
    },
  },
};

const isHelp = (argument: string | undefined) => argument === '--help' || argument === '-h';

async function main([name, ...argv]: readonly string[]): Promise<void> {
  if (name === undefined || isHelp(name) || name === 'help') {
    process.stdout.write(commands[argv[0] ?? '']?.help() ?? programHelp);
    return;
  }
  const command = commands[name === '--version' ? 'version' : name];
  if (command === undefined) {
    const hint = nearest(name, Object.keys(commands));
    throw new SluiceError(
      'config_invalid',
      `${JSON.stringify(name)}: unknown command${hint === undefined ? '' : `; did you mean ${hint}?`} (sluice --help lists all)`,
    );
  }
  if (argv.some(isHelp)) process.stdout.write(command.help());
  else await command.run(argv);
}

main(process.argv.slice(2)).catch(exitWith);
