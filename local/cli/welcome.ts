/** What `npm start` prints when all is up: how to ask the model, where things are, what to try. Pure but for PATH. */
import { accessSync, constants } from 'node:fs';
import path from 'node:path';
import type { Cluster } from '../cluster.ts';
import { childEnvironment } from '../config.ts';
import type { Served } from './served.ts';

export function welcome({ plane, operator }: Cluster, { service, url, model }: Served): string {
  const { namespace, name } = service;
  const kubectl = onPath('kubectl') ? 'kubectl' : plane.kubectl;
  const inNamespace = namespace === 'default' ? '' : ` -n ${namespace}`;
  const messages = [{ role: 'user', content: 'Who are you?' }];
  const request = JSON.stringify({ model, stream: true, temperature: 0, messages });
  return `
Ask the model:

  curl -N ${url}/v1/chat/completions -H 'content-type: application/json' -d '${request}'

Service      ${url} (OpenAI's API under ${url}/v1)
Kubeconfig   ${plane.kubeconfig}
Audit log    ${plane.auditLog}
Logs         ${path.dirname(operator.logFile)}

In another terminal:

  export KUBECONFIG=${plane.kubeconfig}
  ${kubectl} get${inNamespace} inferenceservices,pods
  ${kubectl} logs${inNamespace} -l sluice.dev/service=${name}
  ${kubectl} scale${inNamespace} inferenceservice ${name} --replicas=2
  ${kubectl} delete${inNamespace} inferenceservice ${name}

Ctrl-C stops everything and leaves nothing behind.
`;
}

function onPath(program: string): boolean {
  return (childEnvironment().PATH ?? '').split(path.delimiter).some((folder) => {
    try {
      accessSync(path.join(folder, program), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}
