/**
 * A throw-away certificate authority: X.509 certificates with ECDSA P-256 keys, written in DER by hand, since Node can
 * sign but not assemble them and neither openssl nor another package can be presumed. In: names and addresses. Out: PEM.
 * Must not know who uses them, nor write files.
 */
import {
  createHash,
  createPrivateKey,
  createPublicKey,
  generateKeyPairSync,
  type KeyObject,
  randomBytes,
  sign,
  X509Certificate,
} from 'node:crypto';
import { isIPv4 } from 'node:net';

export interface KeyAndCertificate {
  readonly keyPem: string;
  readonly certificatePem: string;
}

export interface CertificateRequest {
  /** For a client, the user's name. */
  readonly commonName: string;
  /** For a client, the user's groups. */
  readonly organizations?: readonly string[];
  /** DNS names and IPv4 addresses that a server answers to. */
  readonly hosts?: readonly string[];
}

export interface CertificateAuthority extends KeyAndCertificate {
  /** A certificate good for clients and for servers. */
  issue(request: CertificateRequest): KeyAndCertificate;
}

const validityMs = 365 * 24 * 3600 * 1000;
/** Against clocks that differ. */
const backdateMs = 3600 * 1000;

const oid = {
  commonName: '2.5.4.3',
  organization: '2.5.4.10',
  ecdsaWithSha256: '1.2.840.10045.4.3.2',
  subjectKeyIdentifier: '2.5.29.14',
  keyUsage: '2.5.29.15',
  subjectAlternativeName: '2.5.29.17',
  basicConstraints: '2.5.29.19',
  authorityKeyIdentifier: '2.5.29.35',
  extendedKeyUsage: '2.5.29.37',
  serverAuthentication: '1.3.6.1.5.5.7.3.1',
  clientAuthentication: '1.3.6.1.5.5.7.3.2',
} as const;

export function createCertificateAuthority(commonName: string): CertificateAuthority {
  const key = generateKey();
  const identity: Issuer = {
    name: { commonName },
    key: key.privateKey,
    keyIdentifier: keyIdentifier(key.publicKey),
  };
  const certificatePem = certificate(identity, { commonName }, key.publicKey, [
    extension(oid.basicConstraints, sequence(boolean(true)), true),
    // keyCertSign and cRLSign.
    extension(oid.keyUsage, bitString(Buffer.from([0b0000_0110]), 1), true),
  ]);
  return authorityOf(identity, certificatePem);
}

/** One that createCertificateAuthority() made, perhaps in another process; throws for anything else. */
export function readCertificateAuthority({
  keyPem,
  certificatePem,
}: KeyAndCertificate): CertificateAuthority {
  const key = createPrivateKey(keyPem);
  const { subject, publicKey } = new X509Certificate(certificatePem);
  const commonName = /^CN=(.*)$/.exec(subject)?.[1];
  if (commonName === undefined || key.asymmetricKeyType !== 'ec' || !createPublicKey(key).equals(publicKey))
    throw new Error('it is no key and certificate of an authority with one common name and an EC key');
  return authorityOf({ name: { commonName }, key, keyIdentifier: keyIdentifier(publicKey) }, certificatePem);
}

function authorityOf(identity: Issuer, certificatePem: string): CertificateAuthority {
  return {
    keyPem: identity.key.export({ type: 'pkcs8', format: 'pem' }) as string,
    certificatePem,
    issue(request) {
      const leaf = generateKey();
      const extensions = [
        extension(oid.basicConstraints, sequence(), true),
        // digitalSignature.
        extension(oid.keyUsage, bitString(Buffer.from([0b1000_0000]), 7), true),
        extension(
          oid.extendedKeyUsage,
          sequence(objectIdentifier(oid.serverAuthentication), objectIdentifier(oid.clientAuthentication)),
        ),
      ];
      const hosts = request.hosts ?? [];
      if (hosts.length > 0) {
        extensions.push(extension(oid.subjectAlternativeName, sequence(...hosts.map(generalName))));
      }
      return {
        keyPem: leaf.privateKey.export({ type: 'pkcs8', format: 'pem' }) as string,
        certificatePem: certificate(identity, request, leaf.publicKey, extensions),
      };
    },
  };
}

/** A key pair for signing service-account tokens. */
export function createSigningKey(): { readonly privateKeyPem: string; readonly publicKeyPem: string } {
  const { privateKey } = generateKey();
  return {
    privateKeyPem: privateKey.export({ type: 'pkcs8', format: 'pem' }) as string,
    publicKeyPem: createPublicKey(privateKey).export({ type: 'spki', format: 'pem' }) as string,
  };
}

interface Issuer {
  readonly name: CertificateRequest;
  readonly key: KeyObject;
  readonly keyIdentifier: Buffer;
}

function generateKey(): { publicKey: KeyObject; privateKey: KeyObject } {
  return generateKeyPairSync('ec', { namedCurve: 'P-256' });
}

/** RFC 5280, section 4.1. */
function certificate(
  issuer: Issuer,
  subject: CertificateRequest,
  publicKey: KeyObject,
  extensions: readonly Buffer[],
): string {
  const algorithm = sequence(objectIdentifier(oid.ecdsaWithSha256));
  const now = Date.now();
  const body = sequence(
    explicit(0, integer(Buffer.from([2]))),
    // Positive, and its first byte never zero.
    integer(Buffer.concat([Buffer.from([0x40]), randomBytes(15)])),
    algorithm,
    name(issuer.name),
    sequence(time(new Date(now - backdateMs)), time(new Date(now + validityMs))),
    name(subject),
    publicKey.export({ type: 'spki', format: 'der' }),
    explicit(
      3,
      sequence(
        ...extensions,
        extension(oid.subjectKeyIdentifier, octetString(keyIdentifier(publicKey))),
        extension(oid.authorityKeyIdentifier, sequence(value(0x80, issuer.keyIdentifier))),
      ),
    ),
  );
  const der = sequence(body, algorithm, bitString(sign('sha256', body, issuer.key), 0));
  const base64 = der.toString('base64').replace(/.{1,64}/g, '$&\n');
  return `-----BEGIN CERTIFICATE-----\n${base64}-----END CERTIFICATE-----\n`;
}

function keyIdentifier(publicKey: KeyObject): Buffer {
  return createHash('sha1')
    .update(publicKey.export({ type: 'spki', format: 'der' }))
    .digest();
}

function name(request: CertificateRequest): Buffer {
  const attribute = (type: string, text: string) =>
    value(0x31, sequence(objectIdentifier(type), value(0x0c, Buffer.from(text, 'utf8'))));
  return sequence(
    ...(request.organizations ?? []).map((organization) => attribute(oid.organization, organization)),
    attribute(oid.commonName, request.commonName),
  );
}

function generalName(host: string): Buffer {
  return isIPv4(host)
    ? value(0x87, Buffer.from(host.split('.').map(Number)))
    : value(0x82, Buffer.from(host, 'ascii'));
}

function extension(type: string, content: Buffer, critical = false): Buffer {
  return sequence(objectIdentifier(type), ...(critical ? [boolean(true)] : []), octetString(content));
}

// DER (X.690): a tag, a length, the content.

function value(tag: number, content: Buffer): Buffer {
  if (content.length < 0x80) return Buffer.concat([Buffer.from([tag, content.length]), content]);
  const length: number[] = [];
  for (let rest = content.length; rest > 0; rest >>>= 8) length.unshift(rest & 0xff);
  return Buffer.concat([Buffer.from([tag, 0x80 | length.length, ...length]), content]);
}

function sequence(...parts: readonly Buffer[]): Buffer {
  return value(0x30, Buffer.concat(parts));
}

function explicit(number: number, content: Buffer): Buffer {
  return value(0xa0 | number, content);
}

/** Big-endian and not negative: the caller's first byte is below 0x80. */
function integer(bytes: Buffer): Buffer {
  return value(0x02, bytes);
}

function boolean(on: boolean): Buffer {
  return value(0x01, Buffer.from([on ? 0xff : 0]));
}

function bitString(bytes: Buffer, unusedBits: number): Buffer {
  return value(0x03, Buffer.concat([Buffer.from([unusedBits]), bytes]));
}

function octetString(bytes: Buffer): Buffer {
  return value(0x04, bytes);
}

function objectIdentifier(dotted: string): Buffer {
  const [first = 0, second = 0, ...rest] = dotted.split('.').map(Number);
  const bytes: number[] = [];
  for (const arc of [first * 40 + second, ...rest]) {
    const digits = [arc & 0x7f];
    for (let left = arc >>> 7; left > 0; left >>>= 7) digits.unshift((left & 0x7f) | 0x80);
    bytes.push(...digits);
  }
  return value(0x06, Buffer.from(bytes));
}

/** UTCTime, which RFC 5280 requires until 2049. */
function time(date: Date): Buffer {
  const text = date.toISOString().replace(/[-:T]/g, '').slice(2, 14);
  return value(0x17, Buffer.from(`${text}Z`, 'ascii'));
}
