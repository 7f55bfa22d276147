/** A lifecycle hook carried out: a command, an HTTP request, a sleep. Must not know when hooks are due. */
import type { LifecycleHandler } from './pod-types.ts';
import { type ProbeOutcome, type ProbeTarget, probeHttp } from './probe.ts';
import { aborted, pause } from './wait.ts';

/** Hooks have no timeout of their own; what ends them is the container's. */
const timeoutMs = 2 ** 31 - 1;

/** Never rejects; ends early, as a failure, when the signal is aborted. */
export async function runHook(
  hook: LifecycleHandler,
  target: ProbeTarget,
  signal: AbortSignal,
): Promise<ProbeOutcome> {
  if (hook.sleep) {
    await pause(hook.sleep.seconds * 1000, signal);
    return { ok: !signal.aborted, message: 'it was cut short' };
  }
  const cut = aborted(signal).then(() => ({ ok: false, message: 'it did not end in time' }));
  if (hook.exec) {
    const command = hook.exec.command ?? [];
    const run = target.exec(command, timeoutMs).then(({ code, output }) => ({
      ok: code === 0,
      message: `command ${JSON.stringify(command)} exited with ${code}: ${output.trim()}`,
    }));
    return await Promise.race([run, cut]);
  }
  if (hook.httpGet) {
    return await Promise.race([probeHttp(hook.httpGet, target, timeoutMs, 'kube-lifecycle/1.36'), cut]);
  }
  return { ok: true, message: '' };
}
