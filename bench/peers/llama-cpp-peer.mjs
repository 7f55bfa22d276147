// Serves the benchmark's requests with llama.cpp through node-llama-cpp: one JSON line in, one out.
// Arguments: model, threads. Runs in the folder where the package is installed.
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { GgmlType, getLlama } from 'node-llama-cpp';

const [model, threads] = process.argv.slice(2);
const { version } = JSON.parse(readFileSync('node_modules/node-llama-cpp/package.json', 'utf8'));
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
const [keys, values] = [context.kvCacheKeyType, context.kvCacheValueType].map((type) => GgmlType[type]);
console.log(
  JSON.stringify({
    ready: true,
    name: 'llama.cpp',
    details:
      `${llama.llamaCppRelease.release} in node-llama-cpp ${version}, ${context.currentThreads} threads; 4-bit weights ` +
      `as the GGUF has them, int8 activations, ${keys} keys and ${values} values in the KV cache, flash attention ` +
      `${context.flashAttention}; what all prompts begin with is run once, kept, and copied to the other sequences`,
  }),
);

/** Tokens that all prompts begin with; each keeps one of its own, which must run to give its answer. */
function commonPrefix(prompts) {
  let length = Math.min(...prompts.map((prompt) => prompt.length - 1));
  for (const prompt of prompts.slice(1)) {
    const differs = prompt.findIndex((token, i) => token !== prompts[0][i]);
    if (differs >= 0) length = Math.min(length, differs);
  }
  return prompts[0].slice(0, length);
}

/**
 * Runs what the first sequence does not have of it from before, and copies it to the others: the package's own way, which its
 * decision contexts take (llama_memory_seq_cp).
 */
async function sharePrefix(prefix, [first, ...others]) {
  await keepStart(first, prefix);
  await first.evaluateWithoutGeneratingNewTokens(prefix.slice(first.nextTokenIndex));
  for (const other of others) {
    await other.clearHistory();
    if (!(await other._copyStateFromOtherSequence(first, prefix.length)))
      throw new Error(`the prefix of ${prefix.length} tokens could not be copied`);
  }
}

/** Of what the sequence holds, what these tokens begin with. */
const keepStart = (slot, tokens) => slot.adaptStateToTokens(tokens, false);

async function run(slot, { tokens, maxTokens }) {
  // The last token must run to give the answer.
  await keepStart(slot, tokens.slice(0, -1));
  let count = 0;
  const options = { temperature: 0, yieldEogToken: true };
  for await (const _ of slot.evaluate(tokens.slice(slot.nextTokenIndex), options)) {
    if (++count === maxTokens) break;
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const start = performance.now();
  const items = JSON.parse(line).map(({ prompt, maxTokens }) => ({
    tokens: loaded.tokenize(prompt),
    maxTokens,
  }));
  const taking = slots.slice(0, items.length);
  const prefix = items.length > 1 ? commonPrefix(items.map(({ tokens }) => tokens)) : [];
  if (prefix.length > 0) await sharePrefix(prefix, taking);
  const queue = [...items];
  await Promise.all(
    taking.map(async (slot) => {
      for (let item = queue.shift(); item; item = queue.shift()) await run(slot, item);
    }),
  );
  console.log(JSON.stringify({ seconds: (performance.now() - start) / 1000 }));
}
