/**
 * The program's log: JSON lines for machines; on a terminal, lines for people. Errors that end the program are not logged
 * but printed as one line on stderr.
 */
import pino, { type Logger } from 'pino';

export interface ProgramLog {
  readonly log: Logger;
  /** Writes what is still held; nothing may be logged afterwards. */
  flush(): void;
}

export function createLog(level: string): ProgramLog {
  const options = {
    level,
    base: null,
    formatters: { level: (label: string) => ({ level: label }) },
    timestamp: pino.stdTimeFunctions.isoTime,
  };
  if (process.stdout.isTTY) {
    const log = pino(options, { write: (line: string) => void process.stdout.write(forPeople(line)) });
    return { log, flush: () => {} };
  }
  // Not synchronous: whoever reads the pipe slowly must not stop the server.
  const destination = pino.destination({ dest: 1, sync: false });
  return { log: pino(options, destination), flush: () => flushNow(destination) };
}

type Destination = ReturnType<typeof pino.destination>;

function flushNow(destination: Destination): void {
  try {
    destination.flushSync();
  } catch {
    // The file is not open yet, or nobody reads any more: there is nothing to save.
  }
}

function forPeople(line: string): string {
  const { time, level, msg, reqId, ...fields } = JSON.parse(line) as Record<string, unknown>;
  const rest = Object.entries(fields).map(
    ([name, value]) => ` ${name}=${typeof value === 'string' ? value : JSON.stringify(value)}`,
  );
  const request = typeof reqId === 'string' ? ` ${reqId.slice(0, 8)}` : '';
  return `${String(time).slice(11, 19)} ${String(level).toUpperCase().padEnd(5)}${request} ${String(msg)}${rest.join('')}\n`;
}
