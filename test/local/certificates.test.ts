/** Certificates written by hand, read back by OpenSSL (Node's X509Certificate) and used for a TLS connection. */
import assert from 'node:assert/strict';
import { X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { describe, test } from 'node:test';
import tls from 'node:tls';
import fc from 'fast-check';
import { createCertificateAuthority, readCertificateAuthority } from '../../local/certificates.ts';

describe('the throw-away certificate authority', () => {
  const authority = createCertificateAuthority('test authority');
  const root = new X509Certificate(authority.certificatePem);

  test('is a self-signed CA', () => {
    assert.equal(root.ca, true);
    assert.equal(root.subject, 'CN=test authority');
    assert.equal(root.verify(root.publicKey), true);
    assert.equal(root.checkIssued(root), true);
  });

  test('issues certificates that name their subject and hosts, are signed by it and hold the key', () => {
    const names = fc.stringMatching(/^[A-Za-z0-9:._-]{1,60}$/);
    const hosts = fc.array(fc.oneof(fc.ipV4(), fc.stringMatching(/^[a-z][a-z0-9.-]{0,30}[a-z0-9]$/)), {
      maxLength: 9,
    });
    fc.assert(
      fc.property(names, fc.array(names, { maxLength: 9 }), hosts, (commonName, organizations, hosts) => {
        const { certificatePem, keyPem } = authority.issue({ commonName, organizations, hosts });
        const certificate = new X509Certificate(certificatePem);
        assert.equal(
          certificate.subject,
          [...organizations.map((name) => `O=${name}`), `CN=${commonName}`].join('\n'),
        );
        assert.equal(certificate.ca, false);
        assert.equal(certificate.verify(root.publicKey), true);
        assert.equal(certificate.checkIssued(root), true);
        assert.equal(tls.createSecureContext({ cert: certificatePem, key: keyPem }) !== undefined, true);
        for (const host of hosts) {
          const known = /^[\d.]+$/.test(host)
            ? certificate.checkIP(host)
            : certificate.subjectAltName?.includes(host);
          assert.ok(known, `${host} in ${certificate.subjectAltName}`);
        }
      }),
      { numRuns: 40 },
    );
  });

  test('goes on issuing from its key and certificate, and takes no others', () => {
    const again = readCertificateAuthority(authority);
    const certificate = new X509Certificate(again.issue({ commonName: 'node' }).certificatePem);
    assert.equal(certificate.verify(root.publicKey), true);
    assert.equal(certificate.checkIssued(root), true);
    const { keyPem } = createCertificateAuthority('another');
    assert.throws(() => readCertificateAuthority({ ...authority, keyPem }), /no key and certificate/);
  });

  const server = authority.issue({ commonName: 'server', hosts: ['localhost', '127.0.0.1'] });
  const foreign = createCertificateAuthority('test authority');
  const client = authority.issue({ commonName: 'me', organizations: ['us'] });
  const connections = [
    { title: 'a client that trusts it connects', ca: authority, identity: client, expected: 'CN=me O=us' },
    {
      title: 'a client of another authority is turned away',
      ca: authority,
      identity: foreign.issue({ commonName: 'me' }),
      expected: undefined,
    },
    {
      title: 'a server of another authority is not trusted',
      ca: foreign,
      identity: client,
      expected: undefined,
    },
  ];
  for (const { title, ca, identity, expected } of connections) {
    test(title, async (t) => {
      const listener = tls.createServer(
        { cert: server.certificatePem, key: server.keyPem, ca: authority.certificatePem, requestCert: true },
        (socket) => {
          const { subject } = socket.getPeerCertificate();
          socket.end(`CN=${subject.CN} O=${subject.O}`);
        },
      );
      listener.on('tlsClientError', () => {});
      listener.listen(0, '127.0.0.1');
      await once(listener, 'listening');
      t.after(() => listener.close());
      const { port } = listener.address() as { port: number };
      let greeting: string | undefined = '';
      try {
        const socket = tls.connect({
          host: '127.0.0.1',
          port,
          ca: ca.certificatePem,
          cert: identity.certificatePem,
          key: identity.keyPem,
        });
        for await (const chunk of socket) greeting += chunk;
      } catch {
        greeting = undefined;
      }
      assert.equal(greeting || undefined, expected);
    });
  }
});
