// Serves the benchmark's requests with llama.cpp through node-llama-cpp: one JSON line in, one out.
// Arguments: model, threads. Runs in the folder where the package is installed.
import { createInterface } from 'node:readline';
import { getLlama } from 'node-llama-cpp';

const [model, threads] = process.argv.slice(2);
const llama = await getLlama({ gpu: false, build: 'never', logLevel: 'error' });
const loaded = await llama.loadModel({ modelPath: model });
const sequences = 32;
const context = await loaded.createContext({
  sequences,
  contextSize: 2048,
  batchSize: 2048,
  threads: Number(threads),
});
const slots = Array.from({ length: sequences }, () => context.getSequence());
console.log(
  JSON.stringify({
    ready: true,
    name: 'llama.cpp (node-llama-cpp 3.22.1)',
    details: '4-bit weights as the GGUF has them, int8 activations, float16 KV cache',
  }),
);

async function run(slot, { prompt, maxTokens }) {
  await slot.clearHistory();
  let count = 0;
  for await (const _ of slot.evaluate(loaded.tokenize(prompt), { temperature: 0, yieldEogToken: true })) {
    if (++count === maxTokens) break;
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const items = JSON.parse(line);
  const queue = [...items];
  const start = performance.now();
  await Promise.all(
    slots.slice(0, items.length).map(async (slot) => {
      for (let item = queue.shift(); item; item = queue.shift()) await run(slot, item);
    }),
  );
  console.log(JSON.stringify({ seconds: (performance.now() - start) / 1000 }));
}
