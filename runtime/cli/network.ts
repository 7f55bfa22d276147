/** Proxies and certificate authorities of this process, as the environment asks: once, before the first request. */
import { readFileSync } from 'node:fs';
import { setGlobalProxyFromEnv } from 'node:http';
import tls from 'node:tls';
import type { NetworkSettings } from '../config/hub.ts';
import { SluiceError } from '../errors.ts';

let applied = false;

/** Throws SluiceError `config_invalid` when the authorities' file cannot be used. */
export function useNetworkSettings({ proxies, certificatesFile }: NetworkSettings): void {
  if (applied) return;
  applied = true;
  try {
    setGlobalProxyFromEnv({ ...proxies });
  } catch (cause) {
    throw new SluiceError(
      'config_invalid',
      `the proxy variables cannot be used: ${(cause as Error).message}; the form is http://host:port, for example HTTPS_PROXY=http://proxy.example:3128`,
      { cause },
    );
  }
  if (certificatesFile === undefined) return;
  try {
    const own = readFileSync(certificatesFile.path, 'utf8');
    tls.setDefaultCACertificates([...tls.getCACertificates('default'), own]);
  } catch (cause) {
    throw new SluiceError(
      'config_invalid',
      `${certificatesFile.variable} ${JSON.stringify(certificatesFile.path)}: cannot be used as a file of certificates: ${(cause as Error).message}`,
      { cause },
    );
  }
}
