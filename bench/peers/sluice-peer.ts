/** Serves the benchmark's requests with Sluice: one JSON line in, one out. Arguments: model, threads, JSON of options. */
import { createInterface } from 'node:readline';
import { loadModel } from '../../runtime/cli/load-model.ts';
import { packageVersion } from '../../runtime/cli/package-root.ts';
import { loadConfig } from '../../runtime/config.ts';
import { attendsInBfloat16, chooseInstructionSet } from '../../runtime/engine/kernels/x64/processor.ts';
import { defaultSampling } from '../../runtime/sampling/parameters.ts';

const [model, threads, flags] = process.argv.slice(2) as [string, string, string];
const options = JSON.parse(flags) as string[];
const argv = ['--model-path', model, '--threads', threads, ...options];
const config = loadConfig({ argv, env: {} });
const backend = await loadModel(config, { onProgress() {}, onWarning: console.error });
const { quantizedCompute, enablePrefixCaching } = config;
const { kvDType, ranks } = backend.details;
const instructions = chooseInstructionSet(config.cpuKernels) ?? null;
const attention =
  kvDType === 'int8' && instructions === 'avx512'
    ? 'int8'
    : attendsInBfloat16(quantizedCompute, instructions)
      ? 'bfloat16'
      : 'float32';
console.log(
  JSON.stringify({
    ready: true,
    name: 'Sluice',
    details:
      `${packageVersion}, ${config.threads} threads in ${ranks} ranks; 4-bit weights as the GGUF has them, ` +
      `${quantizedCompute} activations of their products, attention in products of ${attention}, else float32, ` +
      `${kvDType} KV cache, ${instructions === null ? 'portable kernels' : `kernels for ${instructions}`}, ` +
      `prefix caching ${enablePrefixCaching ? 'on' : 'off'}${options.length > 0 ? `; given ${options.join(' ')}` : ''}`,
  }),
);

let count = 0;
for await (const line of createInterface({ input: process.stdin })) {
  const items = JSON.parse(line) as { prompt: string; maxTokens: number }[];
  const start = performance.now();
  await Promise.all(
    items.map(async ({ prompt, maxTokens }) => {
      const request = {
        id: `bench-${count++}`,
        prompt: backend.words.tokenizer.encode(prompt),
        sampling: { ...defaultSampling, temperature: 0, ignoreEos: true, maxTokens },
        stop: [],
      };
      for await (const event of backend.generate(request, new AbortController().signal)) void event;
    }),
  );
  console.log(JSON.stringify({ seconds: (performance.now() - start) / 1000 }));
}
process.exit(0);
