/** Measured speeds as a table on the terminal, and as the table and the SVG chart of docs/benchmarks.md. */
import { writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import path from 'node:path';
import { writeSection } from '../docs-section.ts';

export interface Named {
  readonly name: string;
  readonly details: string;
}

export interface Measured {
  readonly workload: string;
  readonly unit: string;
  /** By engine, Sluice first: one speed a round. */
  readonly speeds: readonly (readonly number[])[];
}

const docs = path.resolve(import.meta.dirname, '../../docs');

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

function rows(engines: readonly Named[], measured: readonly Measured[]): string[] {
  const head = ['workload', ...engines.map((engine) => engine.name), 'Sluice / better peer (min - max)'];
  const body = measured.map(({ workload, unit, speeds }) => {
    const ratios = speeds[0]!.map(
      (own, round) => own / Math.max(...speeds.slice(1).map((peer) => peer[round]!)),
    );
    const range = `${Math.min(...ratios).toFixed(2)} - ${Math.max(...ratios).toFixed(2)}`;
    return [
      `${workload} (${unit})`,
      ...speeds.map((each) => median(each).toFixed(0)),
      `**${median(ratios).toFixed(2)}** (${range})`,
    ];
  });
  return [head, head.map(() => '---'), ...body].map((cells) => `| ${cells.join(' | ')} |`);
}

const descriptions = (engines: readonly Named[]): string[] =>
  engines.map((engine) => `- ${engine.name}: ${engine.details}`);

export function printReport(engines: readonly Named[], measured: readonly Measured[]): void {
  console.log([...rows(engines, measured), '', ...descriptions(engines)].join('\n'));
}

/** Bars of each engine's speed relative to the fastest, one group a workload. */
function chart(engines: readonly Named[], measured: readonly Measured[]): string {
  const colours = ['#1f6feb', '#9aa4b2', '#d29922'];
  const bar = 14;
  const group = engines.length * bar + 30;
  const height = measured.length * group + 40;
  const parts = [
    `<svg xmlns="http://www.w3.org/2000/svg" width="860" height="${height}" font-family="sans-serif" font-size="12">`,
    '<title>Speeds of Sluice and its peers</title>',
    '<rect width="100%" height="100%" fill="white"/>',
  ];
  for (const [index, engine] of engines.entries()) {
    parts.push(`<rect x="${20 + index * 270}" y="10" width="12" height="12" fill="${colours[index]}"/>`);
    parts.push(`<text x="${38 + index * 270}" y="20">${engine.name}</text>`);
  }
  for (const [at, { workload, unit, speeds }] of measured.entries()) {
    const top = 40 + at * group;
    const best = Math.max(...speeds.map(median));
    parts.push(`<text x="20" y="${top + 12}" font-weight="bold">${workload} (${unit})</text>`);
    for (const [index, each] of speeds.entries()) {
      const width = (median(each) / best) * 700;
      const y = top + 18 + index * bar;
      parts.push(
        `<rect x="20" y="${y}" width="${width.toFixed(1)}" height="${bar - 3}" fill="${colours[index]}"/>`,
      );
      parts.push(`<text x="${(26 + width).toFixed(1)}" y="${y + 10}">${median(each).toFixed(0)}</text>`);
    }
  }
  return `${parts.join('\n')}\n</svg>\n`;
}

export function writeReport(engines: readonly Named[], measured: readonly Measured[]): void {
  const cores = cpus();
  writeSection('peers', [
    `${cores[0]?.model ?? 'unknown processor'}, ${cores.length} cores, Node ${process.version}. SmolLM2-135M-Instruct, Q4_1; medians of`,
    `${measured[0]?.speeds[0]?.length ?? 0} rounds in which the engines take turns.`,
    '',
    ...rows(engines, measured),
    '',
    '![speeds, longer is faster](benchmarks.svg)',
    '',
    ...descriptions(engines),
  ]);
  writeFileSync(path.join(docs, 'benchmarks.svg'), chart(engines, measured));
}
