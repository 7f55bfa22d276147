/**
 * A process node from the command line, so that a cluster of this machine gets another node. Exit codes: 0 stopped by a
 * signal, 1 the API server could not be reached, 2 wrong options.
 */
import { createKubeClient } from '../../operator/kube/rest-client.ts';
import { SluiceError } from '../../runtime/errors.ts';
import { startProcessNode } from '../node/process-node.ts';
import { help, parseNodeOptions } from './node-options.ts';

async function main(): Promise<void> {
  const options = parseNodeOptions(process.argv.slice(2));
  if (options === undefined) {
    process.stdout.write(help);
    return;
  }
  const { kubeconfig, ...rest } = options;
  const stopped = new Promise<void>((resolve) => {
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => resolve());
  });
  const client = createKubeClient({
    ...(kubeconfig === undefined ? {} : { kubeconfig }),
    userAgent: 'process-node',
  });
  try {
    const node = await startProcessNode({
      ...rest,
      client,
      apiServer: client.server,
      onMessage: (line) => console.log(line),
      onFailure: (error) => console.error(error instanceof Error ? error.message : String(error)),
    });
    console.log(
      `node ${node.name} is ready, with ${rest.gpus} GPUs (nvidia.com/gpu); Ctrl-C ends it and its pods' processes`,
    );
    await stopped;
    await node.stop();
  } finally {
    client.close();
  }
}

try {
  await main();
} catch (error) {
  console.error(error instanceof Error ? error.message : String(error));
  process.exitCode = error instanceof SluiceError ? error.exitCode : 1;
}
