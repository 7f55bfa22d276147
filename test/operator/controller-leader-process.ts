/**
 * A candidate that writes as fast as it can while it leads, for the test that stops it. Arguments: kubeconfig,
 * namespace, identity. Each term writes to ConfigMaps of its own name, so that the audit log tells terms apart. Prints
 * one line per change of state.
 */
import { systemClock } from '../../operator/controller/clock.ts';
import { fencedClient } from '../../operator/controller/fenced-client.ts';
import { LeaderElector, NotLeaderError } from '../../operator/controller/leader.ts';
import { KubeError, resources } from '../../operator/kube/client.ts';
import { createKubeClient } from '../../operator/kube/rest-client.ts';

const [kubeconfig, namespace, identity] = process.argv.slice(2) as [string, string, string];
const options = { kubeconfig, userAgent: identity };
const client = createKubeClient(options);
const print = (text: string) => process.stdout.write(`${text}\n`);
const log = {
  debug: () => {},
  info: (_fields: object, message: string) => print(message),
  warn: (_fields: object, message: string) => print(message),
  error: (_fields: object, message: string) => print(message),
};

const elector = new LeaderElector({
  client,
  namespace,
  name: 'lease',
  identity,
  clock: systemClock,
  random: Math.random,
  log,
  leaseDurationMs: 5_000,
  renewDeadlineMs: 3_000,
  retryPeriodMs: 500,
});

const stop = new AbortController();
process.once('SIGTERM', () => stop.abort());

await elector.run(async (leadership) => {
  print(`term ${leadership.term}`);
  const name = `term-${leadership.term}`;
  const object = { apiVersion: 'v1', kind: 'ConfigMap', metadata: { namespace, name } };
  let count = 0;
  const loop = async (fresh: boolean) => {
    // It goes on trying for a while after it was told: nothing but the fence keeps it from writing.
    for (let late = 0; late < 20; late += leadership.signal.aborted ? 1 : 0) {
      // A connection of its own makes it likely that the stop comes while the request waits for it.
      const own = fresh ? createKubeClient(options) : client;
      count += 1;
      try {
        const changed = { ...object, data: { count: String(count) } };
        await fencedClient(own, leadership).apply(resources.configMaps, changed, {
          fieldManager: identity,
          force: true,
        });
      } catch (error) {
        if (!(error instanceof NotLeaderError || error instanceof KubeError)) throw error;
        await new Promise((resolve) => setTimeout(resolve, 5));
      } finally {
        if (fresh) own.close();
      }
    }
  };
  await Promise.all([loop(false), loop(false), loop(true), loop(true), loop(true)]);
}, stop.signal);
client.close();
