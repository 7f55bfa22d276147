/** Resource types that only a node needs. */
import type { ResourceType } from '../../operator/kube/client.ts';

export const serviceAccounts: ResourceType = {
  group: '',
  version: 'v1',
  kind: 'ServiceAccount',
  plural: 'serviceaccounts',
  namespaced: true,
};
