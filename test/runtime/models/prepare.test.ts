import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, readFileSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, beforeEach, test } from 'node:test';
import { llama } from '../../../runtime/models/llama.ts';
import { type PreparedRank, prepareRank } from '../../../runtime/models/prepare.ts';
import type { Checkpoint, DenseTensor, StoredTensor } from '../../../runtime/weights/checkpoint.ts';
import { quantizeTensor } from '../../../runtime/weights/quantize.ts';

const root = mkdtempSync(path.join(tmpdir(), 'sluice-prepare-'));
after(() => rmSync(root, { recursive: true }));

let cacheDir = '';
beforeEach(() => {
  cacheDir = mkdtempSync(path.join(root, 'cache-'));
});

const sizes = { hidden: 256, intermediate: 512, heads: 4, kvHeads: 2, headDim: 64, vocabulary: 1000 };

/** A checkpoint in memory whose every weight is below 1 and told by its name and place. */
function checkpoint(identity: string | undefined, dtype: 'float32' | 'bfloat16' = 'float32'): Checkpoint {
  const { hidden, intermediate, heads, kvHeads, headDim, vocabulary } = sizes;
  const shapes: Record<string, number[]> = {
    'model.embed_tokens.weight': [vocabulary, hidden],
    'model.norm.weight': [hidden],
    'lm_head.weight': [vocabulary, hidden],
    'model.layers.0.input_layernorm.weight': [hidden],
    'model.layers.0.post_attention_layernorm.weight': [hidden],
    'model.layers.0.self_attn.q_proj.weight': [heads * headDim, hidden],
    'model.layers.0.self_attn.k_proj.weight': [kvHeads * headDim, hidden],
    'model.layers.0.self_attn.v_proj.weight': [kvHeads * headDim, hidden],
    'model.layers.0.self_attn.o_proj.weight': [hidden, heads * headDim],
    'model.layers.0.mlp.gate_proj.weight': [intermediate, hidden],
    'model.layers.0.mlp.up_proj.weight': [intermediate, hidden],
    'model.layers.0.mlp.down_proj.weight': [hidden, intermediate],
  };
  const tensors = new Map<string, DenseTensor>();
  for (const [name, shape] of Object.entries(shapes)) {
    const count = shape.reduce((product, size) => product * size, 1);
    const values = Float32Array.from({ length: count }, (_, index) => Math.sin(index + name.length));
    const words = new Uint32Array(values.buffer);
    const bytes =
      dtype === 'float32'
        ? new Uint8Array(values.buffer)
        : new Uint8Array(Uint16Array.from(words, (word) => word >>> 16).buffer);
    tensors.set(name, { kind: 'dense', dtype, shape, read: () => bytes.slice() });
  }
  return {
    path: '/nowhere',
    config: {
      architectures: ['LlamaForCausalLM'],
      hidden_size: hidden,
      intermediate_size: intermediate,
      num_hidden_layers: 1,
      num_attention_heads: heads,
      num_key_value_heads: kvHeads,
      vocab_size: vocabulary,
      max_position_embeddings: 128,
    },
    generationConfig: {},
    tensors,
    encoding: dtype,
    weightBytes: 0,
    ...(identity === undefined ? {} : { identity }),
  };
}

interface Outcome {
  readonly prepared: PreparedRank;
  readonly warnings: readonly string[];
  readonly progress: readonly (readonly [number, number])[];
}

function prepare(
  source: Checkpoint,
  rank = 0,
  ranks = 1,
  folder: string | null = cacheDir,
  machineCode = false,
): Outcome {
  const warnings: string[] = [];
  const progress: [number, number][] = [];
  const prepared = prepareRank(llama.parse(source), source, {
    rank,
    ranks,
    cacheDir: folder,
    machineCode,
    warn: (message) => warnings.push(message),
    onProgress: (done, total) => progress.push([done, total]),
  });
  return { prepared, warnings, progress };
}

/** The bytes of every weight, wherever it is. */
function contents({ prepared }: Outcome): Map<string, string> {
  return new Map(
    [...prepared.body.weights, ...prepared.head.weights].map(({ name, location, bytes }) => {
      const found =
        location === undefined
          ? bytes!()
          : readFileSync(location.file).subarray(location.offset, location.offset + location.bytes);
      return [name, Buffer.from(found).toString('base64')];
    }),
  );
}

const located = ({ prepared }: Outcome): number =>
  [...prepared.body.weights, ...prepared.head.weights].filter(({ location }) => location).length;

test('weights that are not in a file go to one, and are the same as in memory', () => {
  for (const dtype of ['float32', 'bfloat16'] as const) {
    for (const rank of [0, 1]) {
      const source = checkpoint('one', dtype);
      const cached = prepare(source, rank, 2);
      const inMemory = prepare(source, rank, 2, null);
      assert.ok(located(cached) >= 5);
      assert.equal(located(inMemory), 0);
      assert.deepEqual(contents(cached), contents(inMemory));
      assert.deepEqual(cached.warnings, []);
      assert.match(inMemory.warnings.join(), /^there is no cache folder[^\n]*in memory$/);
    }
  }
});

test('a second start uses the file and writes nothing', () => {
  const first = prepare(checkpoint('one'));
  const files = readdirSync(cacheDir);
  assert.equal(files.length, 1);
  const [done, total] = first.progress.at(-1)!;
  assert.equal(done, total);
  const second = prepare(checkpoint('one'));
  assert.deepEqual(second.progress, []);
  assert.deepEqual(readdirSync(cacheDir), files);
  assert.deepEqual(contents(second), contents(first));
});

test('another checkpoint, another rank and another number of ranks have files of their own', () => {
  prepare(checkpoint('one'));
  prepare(checkpoint('two'));
  prepare(checkpoint('one'), 0, 2);
  prepare(checkpoint('one'), 1, 2);
  assert.equal(readdirSync(cacheDir).length, 4);
});

test('a file that was cut short is written again', () => {
  const first = prepare(checkpoint('one'));
  const file = path.join(cacheDir, readdirSync(cacheDir)[0]!);
  writeFileSync(file, readFileSync(file).subarray(0, 100));
  assert.deepEqual(contents(prepare(checkpoint('one'))), contents(first));
});

test('a checkpoint whose content is not known is never cached', () => {
  const outcome = prepare(checkpoint(undefined));
  assert.equal(located(outcome), 0);
  assert.deepEqual(readdirSync(cacheDir), []);
});

test('a cache folder that cannot be made costs a warning, not the start', () => {
  const file = path.join(cacheDir, 'file');
  writeFileSync(file, '');
  const outcome = prepare(checkpoint('one'), 0, 1, path.join(file, 'below'));
  assert.match(outcome.warnings.join(), /cannot be written to .*below \(ENOTDIR\): they are kept in memory/);
  assert.deepEqual(contents(outcome), contents(prepare(checkpoint('one'))));
});

test('what a killed writer left is removed once it is old; a writer at work is left alone', () => {
  const old = path.join(cacheDir, 'a.weights.1-x.tmp');
  const young = path.join(cacheDir, 'b.weights.2-y.tmp');
  const foreign = path.join(cacheDir, 'notes.tmp');
  for (const file of [old, young, foreign]) writeFileSync(file, 'x');
  const past = new Date(Date.now() - 2 * 60 * 60 * 1000);
  for (const file of [old, foreign]) utimesSync(file, past, past);
  prepare(checkpoint('one'));
  const names = readdirSync(cacheDir).filter((name) => name.endsWith('.tmp'));
  assert.deepEqual(names.sort(), ['b.weights.2-y.tmp', 'notes.tmp']);
});

test('a quantized table lies in the cache once, for looking up and for multiplying, however many ranks share it', () => {
  const { vocabulary, hidden } = sizes;
  const name = 'model.embed_tokens.weight';
  const plain = checkpoint('one');
  const table = quantizeTensor(plain.tensors.get(name) as DenseTensor, { bits: 8, blockSize: 32 });
  const source: Checkpoint = {
    ...plain,
    config: { ...plain.config, tie_word_embeddings: true },
    tensors: new Map<string, StoredTensor>([...plain.tensors, [name, table]]),
  };
  for (const ranks of [1, 2, 3]) {
    for (let rank = 0; rank < ranks; rank++) {
      const outcome = prepare(source, rank, ranks, cacheDir, true);
      const { shard, body, head } = outcome.prepared;
      const rows = body.weights.find((weight) =>
        weight.name.startsWith(`${name}[0:${vocabulary},0:${hidden}]`),
      )!;
      const [product] = head.weights;
      assert.equal(product!.location!.file, rows.location!.file, `rank ${rank} of ${ranks}`);
      const groupBytes = rows.location!.bytes / Math.ceil(vocabulary / 16);
      const offset = rows.location!.offset + (shard.vocabulary.start / 16) * groupBytes;
      assert.equal(product!.location!.offset, offset);
      assert.deepEqual(contents(outcome), contents(prepare(source, rank, ranks, null, true)));
    }
  }
});
