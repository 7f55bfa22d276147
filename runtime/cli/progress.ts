/** Loading, shown: a bar on a terminal, otherwise a line when a phase begins and at each further quarter. */

export interface Progress {
  readonly phase: string;
  readonly done: number;
  readonly total: number;
}

export interface ProgressOutput {
  readonly isTTY?: boolean;
  write(text: string): unknown;
}

export interface ProgressView {
  update(progress: Progress): void;
  /** Clears the bar. */
  end(): void;
}

const barWidth = 30;

export function progressBar(output: ProgressOutput): ProgressView {
  let drawn = '';
  const draw = (text: string) => {
    if (text !== drawn) output.write(`\r\x1b[2K${text}`);
    drawn = text;
  };
  return {
    update({ phase, done, total }) {
      const part = total > 0 ? Math.min(done / total, 1) : 0;
      const filled = Math.floor(part * barWidth);
      draw(
        `loading ${phase} [${'#'.repeat(filled)}${'-'.repeat(barWidth - filled)}] ${Math.floor(part * 100)}%`,
      );
    },
    end: () => draw(''),
  };
}

/** `say` is called with the phase and a whole percentage. */
export function progressLines(say: (phase: string, percent: number) => void): ProgressView {
  let last = '';
  return {
    update({ phase, done, total }) {
      const percent = total > 0 ? Math.floor((4 * Math.min(done, total)) / total) * 25 : 0;
      const line = `${phase} ${percent}`;
      if (line !== last) say(phase, percent);
      last = line;
    },
    end: () => {},
  };
}

/** The view that suits an output. */
export function progressView(output: ProgressOutput): ProgressView {
  if (output.isTTY) return progressBar(output);
  return progressLines((phase, percent) => output.write(`loading ${phase}: ${percent}%\n`));
}
