/**
 * Where models are downloaded from and to, by the variables that all of Hugging Face's tools share.
 * Enters: the environment. Leaves: plain settings. Must not know what is downloaded.
 * Source: huggingface_hub's `constants.py`.
 */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { SluiceError } from '../errors.ts';

export interface HubSettings {
  /** Without a slash at the end. */
  readonly endpoint: string;
  /** The folder that holds `models--org--name`. */
  readonly cacheDir: string;
  readonly token?: string;
  /** Nothing may be asked of the network. */
  readonly offline: boolean;
  readonly network: NetworkSettings;
}

export interface NetworkSettings {
  /** The variables HTTP_PROXY, HTTPS_PROXY and NO_PROXY, in either case, as far as they are set. */
  readonly proxies: Readonly<Record<string, string>>;
  /** Authorities beside the usual ones; Node itself reads NODE_EXTRA_CA_CERTS. */
  readonly certificatesFile?: { readonly variable: string; readonly path: string };
}

type Env = Readonly<Record<string, string | undefined>>;

const defaultEndpoint = 'https://huggingface.co';

/** Throws SluiceError `config_invalid`. */
export function hubSettings(env: Env, homeDir: string): HubSettings {
  const cacheHome = env.XDG_CACHE_HOME || path.join(homeDir, '.cache');
  const home = env.HF_HOME || path.join(cacheHome, 'huggingface');
  const token = hubToken(env, home);
  return {
    endpoint: hubEndpoint(env.HF_ENDPOINT || defaultEndpoint),
    cacheDir: path.resolve(env.HF_HUB_CACHE || path.join(home, 'hub')),
    offline: /^(1|true|yes|on)$/i.test(env.HF_HUB_OFFLINE ?? ''),
    network: networkSettings(env),
    ...(token === undefined ? {} : { token }),
  };
}

const proxyVariables = ['http_proxy', 'https_proxy', 'no_proxy'];
const certificateVariables = ['SSL_CERT_FILE', 'REQUESTS_CA_BUNDLE'];

function networkSettings(env: Env): NetworkSettings {
  const proxies = proxyVariables
    .flatMap((name) => [name, name.toUpperCase()])
    .flatMap((name) => (env[name] ? [[name, env[name]] as const] : []));
  const variable = certificateVariables.find((name) => env[name]);
  return {
    proxies: Object.fromEntries(proxies),
    ...(variable === undefined ? {} : { certificatesFile: { variable, path: env[variable]! } }),
  };
}

function hubEndpoint(text: string): string {
  const url = URL.parse(text);
  if (url === null || !/^https?:$/.test(url.protocol)) {
    throw new SluiceError(
      'config_invalid',
      `HF_ENDPOINT ${JSON.stringify(text.slice(0, 200))}: the form is an http or https address, for example ${defaultEndpoint}`,
    );
  }
  return text.replace(/\/+$/, '');
}

/** HF_TOKEN, or the file that `hf auth login` writes. */
function hubToken(env: Env, home: string): string | undefined {
  const given = env.HF_TOKEN?.trim();
  if (given) return checkToken(given, 'HF_TOKEN');
  const file = env.HF_TOKEN_PATH || path.join(home, 'token');
  let text: string;
  try {
    text = readFileSync(file, 'utf8').trim();
  } catch {
    return undefined;
  }
  return text === '' ? undefined : checkToken(text, file);
}

/** The token itself must not get into a message. */
function checkToken(token: string, source: string): string {
  if (/^[\x21-\x7e]{1,1024}$/.test(token)) return token;
  throw new SluiceError(
    'config_invalid',
    `${source}: holds what cannot be sent as a token; the form is one word, for example hf_abc123`,
  );
}
