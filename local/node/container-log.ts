/**
 * What a container wrote, in a file of the form that kubelets use (time, stream, F, text), kept to two files of a
 * limited size, and followed by readers. In: chunks of output; out: lines. Must not know HTTP.
 */
import { closeSync, existsSync, openSync, readFileSync, renameSync, rmSync, writeSync } from 'node:fs';

export interface LogLine {
  readonly time: string;
  readonly text: string;
}

const fileLimitBytes = 10 * 1024 * 1024;
/** A line without an end is cut here. */
const lineLimit = 256 * 1024;

export class ContainerLog {
  readonly #file: string;
  #descriptor: number | undefined;
  #size = 0;
  #partial: Record<'stdout' | 'stderr', string> = { stdout: '', stderr: '' };
  #readers = new Set<(line: LogLine | undefined) => void>();
  #ended = false;
  readonly #decoders = { stdout: new TextDecoder(), stderr: new TextDecoder() };

  constructor(file: string) {
    this.#file = file;
    this.#descriptor = openSync(file, 'w');
  }

  append(stream: 'stdout' | 'stderr', chunk: Buffer): void {
    const text = this.#partial[stream] + this.#decoders[stream].decode(chunk, { stream: true });
    const lines = text.split('\n');
    this.#partial[stream] = lines.pop()!;
    if (this.#partial[stream].length > lineLimit) {
      lines.push(this.#partial[stream]);
      this.#partial[stream] = '';
    }
    this.#write(stream, lines);
  }

  /** No more output will come. */
  end(): void {
    for (const stream of ['stdout', 'stderr'] as const) {
      if (this.#partial[stream] !== '') this.#write(stream, [this.#partial[stream]]);
      this.#partial[stream] = '';
    }
    this.#ended = true;
    if (this.#descriptor !== undefined) closeSync(this.#descriptor);
    this.#descriptor = undefined;
    for (const reader of this.#readers) reader(undefined);
    this.#readers.clear();
  }

  /** All lines that are still kept. */
  read(): LogLine[] {
    return [`${this.#file}.old`, this.#file]
      .filter((file) => existsSync(file))
      .flatMap((file) => readFileSync(file, 'utf8').split('\n').slice(0, -1).map(parseLine));
  }

  /** Calls for each line from now on, and once with undefined at the end. Returns how to stop. */
  follow(reader: (line: LogLine | undefined) => void): () => void {
    if (this.#ended) {
      reader(undefined);
      return () => {};
    }
    this.#readers.add(reader);
    return () => this.#readers.delete(reader);
  }

  /** The end of the output, as a kubelet takes it for a termination message. */
  tail(maxLines: number, maxBytes: number): string {
    const text = this.read()
      .slice(-maxLines)
      .map((line) => `${line.text}\n`)
      .join('');
    const bytes = Buffer.from(text, 'utf8');
    return bytes.subarray(Math.max(0, bytes.length - maxBytes)).toString('utf8');
  }

  remove(): void {
    for (const file of [this.#file, `${this.#file}.old`]) rmSync(file, { force: true });
  }

  #write(stream: string, lines: readonly string[]): void {
    if (lines.length === 0 || this.#descriptor === undefined) return;
    const time = new Date().toISOString();
    const bytes = Buffer.from(lines.map((text) => `${time} ${stream} F ${text}\n`).join(''), 'utf8');
    if (this.#size + bytes.length > fileLimitBytes && this.#size > 0) {
      closeSync(this.#descriptor);
      renameSync(this.#file, `${this.#file}.old`);
      this.#descriptor = openSync(this.#file, 'w');
      this.#size = 0;
    }
    writeSync(this.#descriptor, bytes);
    this.#size += bytes.length;
    for (const reader of this.#readers) {
      for (const text of lines) reader({ time, text });
    }
  }
}

function parseLine(line: string): LogLine {
  const [time = '', , , ...rest] = line.split(' ');
  return { time, text: rest.join(' ') };
}
