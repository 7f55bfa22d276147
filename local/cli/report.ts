/**
 * What `npm start` says while it works: one line for each step that is done and, on a terminal, one that moves for the
 * step under way. Must not know what the steps are.
 */
export interface Report {
  /** Runs one step: shown while it lasts, then as done with its duration. `work` may say what it is at. */
  step<T>(title: string, work: (now: (detail: string) => void) => Promise<T>): Promise<T>;
  /** A line that stays. */
  line(text: string): void;
}

/** Without a terminal there is no moving line; details are printed at most so often. */
const plainIntervalMs = 10_000;
const spinnerIntervalMs = 100;
const spinner = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];

export function createReport(stream: NodeJS.WriteStream): Report {
  let moving: { title: string; detail: string; started: number; frame: number } | undefined;
  const terminal = stream.isTTY === true;

  const clear = () => {
    if (terminal && moving !== undefined) stream.write('\r\x1b[2K');
  };
  const draw = () => {
    if (!terminal || moving === undefined) return;
    const { title, detail, started, frame } = moving;
    const text = `${spinner[frame % spinner.length]} ${title} (${seconds(started)})${detail === '' ? '' : `: ${detail}`}`;
    const width = Math.max(20, stream.columns ?? 80) - 1;
    stream.write(`\r\x1b[2K${text.length > width ? `${text.slice(0, width - 1)}…` : text}`);
  };
  const line = (text: string) => {
    clear();
    stream.write(`${text}\n`);
    draw();
  };

  return {
    line,
    async step(title, work) {
      const state = { title, detail: '', started: Date.now(), frame: 0 };
      moving = state;
      let printed = Date.now();
      const timer = setInterval(() => {
        state.frame++;
        draw();
      }, spinnerIntervalMs);
      draw();
      const now = (detail: string) => {
        if (detail === state.detail) return;
        state.detail = detail;
        if (!terminal && Date.now() - printed > plainIntervalMs) {
          printed = Date.now();
          stream.write(`  ${detail}\n`);
        }
      };
      try {
        const result = await work(now);
        clear();
        moving = undefined;
        stream.write(`✓ ${title} (${seconds(state.started)})\n`);
        return result;
      } finally {
        clearInterval(timer);
        clear();
        moving = undefined;
      }
    },
  };
}

function seconds(since: number): string {
  return `${((Date.now() - since) / 1000).toFixed(1)} s`;
}
