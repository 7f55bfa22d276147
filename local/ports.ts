/** Free TCP ports on 127.0.0.1, outside the range from which the system takes outgoing ones and NodePorts'. */
import { createServer } from 'node:net';

const first = 20_000;
const count = 9_000;

export async function freePort(): Promise<number> {
  for (let attempt = 0; attempt < 100; attempt++) {
    const port = first + Math.floor(Math.random() * count);
    if (await canListen(port)) return port;
  }
  throw new Error(`no free TCP port found between ${first} and ${first + count}`);
}

function canListen(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once('error', () => resolve(false));
    server.listen({ host: '127.0.0.1', port, exclusive: true }, () => server.close(() => resolve(true)));
  });
}
