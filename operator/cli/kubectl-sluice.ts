#!/usr/bin/env node
/** `kubectl sluice`: the commands of sluice-operator. Without one it says which there are instead of being an operator. */
if (process.argv[2] === undefined || (process.argv[2].startsWith('-') && process.argv[2] !== '--version'))
  process.argv.splice(2, process.argv.length, '--help');
await import('./sluice-operator.ts');
