/**
 * The table of the architecture, as measured when the design was chosen: 2 idle cores (AMD Zen 3), SmolLM2-135M
 * geometry, 4-bit weights in blocks of 32, no attention over a context. Milliseconds a step for 1 / 8 / 32 sequences,
 * prefill in tokens a second.
 */
export interface RecordedRow {
  readonly name: string;
  readonly stepMs: readonly [batch1: number, batch8: number, batch32: number];
  readonly prefill?: number;
}

export const recorded: readonly RecordedRow[] = [
  { name: 'one ONNX session per segment, public API (rejected)', stepMs: [11, 32, 70], prefill: 711 },
  { name: 'one graph, 2 threads, no attention, no head', stepMs: [1.8, 8.8, 32], prefill: 930 },
  { name: 'one graph per rank, 2 ranks, with head, empty attention', stepMs: [3.5, 13, 42], prefill: 751 },
  { name: 'the same, int8 weights, per-row activations', stepMs: [3.4, 6.7, 18], prefill: 1985 },
  { name: 'OpenVINO GenAI 2026.4, whole', stepMs: [9.6, 13.3, 41], prefill: 1425 },
  { name: 'llama.cpp (node-llama-cpp 3.22), whole', stepMs: [15.4, 78, 246], prefill: 286 },
];
