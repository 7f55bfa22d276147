/**
 * Who the operator is: the service account and the roles that the chart gives it, so that what works here works there. In:
 * a client that may give them. Out: the user's name and groups.
 */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { parse } from 'yaml';
import type { KubeClient, KubeObject, ResourceType } from '../operator/kube/client.ts';

const rightsFile = path.resolve(import.meta.dirname, '../charts/sluice/rights.yaml');
const name = 'sluice';
const rbac = 'rbac.authorization.k8s.io';

const types: Readonly<Record<string, ResourceType>> = {
  Namespace: { group: '', version: 'v1', kind: 'Namespace', plural: 'namespaces', namespaced: false },
  ServiceAccount: {
    group: '',
    version: 'v1',
    kind: 'ServiceAccount',
    plural: 'serviceaccounts',
    namespaced: true,
  },
  ClusterRole: { group: rbac, version: 'v1', kind: 'ClusterRole', plural: 'clusterroles', namespaced: false },
  ClusterRoleBinding: {
    group: rbac,
    version: 'v1',
    kind: 'ClusterRoleBinding',
    plural: 'clusterrolebindings',
    namespaced: false,
  },
  Role: { group: rbac, version: 'v1', kind: 'Role', plural: 'roles', namespaced: true },
  RoleBinding: { group: rbac, version: 'v1', kind: 'RoleBinding', plural: 'rolebindings', namespaced: true },
};

/** Makes the namespace and the account in it. */
export async function createOperatorAccount(
  client: KubeClient,
  namespace: string,
  fieldManager: string,
): Promise<{ readonly name: string; readonly groups: readonly string[] }> {
  const { watched, cluster, own } = parse(readFileSync(rightsFile, 'utf8')) as Record<string, object[]>;
  const subjects = [{ kind: 'ServiceAccount', name, namespace }];
  const roleRef = (kind: string) => ({ apiGroup: rbac, kind, name });
  const objects: KubeObject[] = [
    { apiVersion: 'v1', kind: 'Namespace', metadata: { name: namespace } },
    { apiVersion: 'v1', kind: 'ServiceAccount', metadata: { namespace, name } },
    {
      apiVersion: `${rbac}/v1`,
      kind: 'ClusterRole',
      metadata: { name },
      rules: [...watched!, ...cluster!],
    },
    {
      apiVersion: `${rbac}/v1`,
      kind: 'ClusterRoleBinding',
      metadata: { name },
      roleRef: roleRef('ClusterRole'),
      subjects,
    },
    { apiVersion: `${rbac}/v1`, kind: 'Role', metadata: { namespace, name }, rules: own },
    {
      apiVersion: `${rbac}/v1`,
      kind: 'RoleBinding',
      metadata: { namespace, name },
      roleRef: roleRef('Role'),
      subjects,
    },
  ];
  for (const object of objects)
    await client.apply(types[object.kind]!, object, { fieldManager, force: true });
  return {
    name: `system:serviceaccount:${namespace}:${name}`,
    groups: ['system:serviceaccounts', `system:serviceaccounts:${namespace}`, 'system:authenticated'],
  };
}
