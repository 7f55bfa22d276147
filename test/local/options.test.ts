/** The command line of `npm start`. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { parseStartOptions } from '../../local/cli/options.ts';

const defaults = { help: false, gpus: 2, hostPorts: false };

describe('the options of npm start', () => {
  const accepted: { args: string[]; expected: object }[] = [
    { args: [], expected: defaults },
    { args: ['--gpus', '8'], expected: { ...defaults, gpus: 8 } },
    { args: ['--gpus=0'], expected: { ...defaults, gpus: 0 } },
    { args: ['--host-ports', '--gpus', '1'], expected: { ...defaults, gpus: 1, hostPorts: true } },
    { args: ['--help'], expected: { ...defaults, help: true } },
    { args: ['-h'], expected: { ...defaults, help: true } },
  ];
  for (const { args, expected } of accepted) {
    test(`"${args.join(' ')}" is understood`, () => assert.deepEqual(parseStartOptions(args), expected));
  }

  const refused: { args: string[]; message: RegExp }[] = [
    { args: ['--gpus'], message: /^--gpus "": a number from 0 to 8 is needed, for example --gpus 4$/ },
    { args: ['--gpus', '-1'], message: /^--gpus "-1": a number/ },
    { args: ['--gpus', '1.5'], message: /^--gpus "1.5": a number/ },
    { args: ['--gpus=many'], message: /^--gpus "many": a number/ },
    { args: ['--gpus', '9'], message: /^--gpus "9": a number/ },
    { args: ['--gpu', '4'], message: /^--gpu: is not an option of npm start; there are --gpus N/ },
    { args: ['-x'], message: /^-x: is not an option/ },
    { args: ['4'], message: /^4: is not an option/ },
    { args: ['--help=yes'], message: /^--help: takes no value/ },
    { args: ['--host-ports=no'], message: /^--host-ports: takes no value/ },
  ];
  for (const { args, message } of refused) {
    test(`"${args.join(' ')}" is refused`, () => {
      assert.throws(
        () => parseStartOptions(args),
        (error: Error & { exitCode?: number }) => {
          assert.match(error.message, message);
          assert.equal(error.exitCode, 2);
          return true;
        },
      );
    });
  }
});
