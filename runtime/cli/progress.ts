/** Loading, shown: a bar on a terminal, otherwise a line when a phase begins and at each further quarter. */

export interface Progress {
  readonly phase: string;
  readonly done: number;
  readonly total: number;
  readonly bytesPerSecond?: number;
  readonly secondsLeft?: number;
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
    update(progress) {
      const { phase, done, total } = progress;
      const part = total > 0 ? Math.min(done / total, 1) : 0;
      const filled = Math.floor(part * barWidth);
      draw(
        `loading ${phase} [${'#'.repeat(filled)}${'-'.repeat(barWidth - filled)}] ${Math.floor(part * 100)}%${downloadText(progress)}`,
      );
    },
    end: () => draw(''),
  };
}

/** Bytes, speed and time left of a download; nothing for other phases. */
function downloadText({ done, total, bytesPerSecond, secondsLeft }: Progress): string {
  if (bytesPerSecond === undefined) return '';
  const left = secondsLeft === undefined ? '' : `, ${timeText(secondsLeft)} left`;
  return ` ${byteText(done)} of ${byteText(total)}, ${byteText(bytesPerSecond)}/s${left}`;
}

export function byteText(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  const unit = bytes < 1 ? 0 : Math.min(Math.floor(Math.log2(bytes) / 10), units.length - 1);
  return `${(bytes / 1024 ** unit).toFixed(unit === 0 ? 0 : 1)} ${units[unit]}`;
}

function timeText(seconds: number): string {
  const minutes = Math.floor(seconds / 60);
  if (minutes === 0) return `${seconds} s`;
  return minutes < 60
    ? `${minutes} min ${seconds % 60} s`
    : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export interface ProgressFields {
  readonly phase: string;
  readonly percent: number;
  readonly bytesPerSecond?: number;
  readonly secondsLeft?: number;
}

/** `say` is called when a phase begins and at each further quarter; of a download, which takes longer, each twentieth. */
export function progressLines(say: (fields: ProgressFields, progress: Progress) => void): ProgressView {
  let last = '';
  return {
    update(progress) {
      const { phase, done, total, bytesPerSecond, secondsLeft } = progress;
      const steps = bytesPerSecond === undefined ? 4 : 20;
      const percent = total > 0 ? (Math.floor((steps * Math.min(done, total)) / total) * 100) / steps : 0;
      const line = `${phase} ${percent}`;
      if (line !== last) {
        const speed = bytesPerSecond === undefined ? {} : { bytesPerSecond };
        say({ phase, percent, ...speed, ...(secondsLeft === undefined ? {} : { secondsLeft }) }, progress);
      }
      last = line;
    },
    end: () => {},
  };
}

/** The view that suits an output. */
export function progressView(output: ProgressOutput): ProgressView {
  if (output.isTTY) return progressBar(output);
  return progressLines(({ phase, percent }, progress) =>
    output.write(`loading ${phase}: ${percent}%${downloadText(progress)}\n`),
  );
}
