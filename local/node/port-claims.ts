/** Who has which port, where pods share one address: the first comer, until it is gone. */

interface Claim {
  readonly owner: string;
  readonly label: string;
}

export class PortClaims {
  readonly #claims = new Map<number, Claim>();
  #waiters: (() => void)[] = [];

  /**
   * Waits until all the ports are free and takes them; `onWait` is told who has one. False: the signal came first.
   * Pods that declare no ports are not known to want any.
   */
  async claim(
    owner: string,
    label: string,
    ports: readonly number[],
    signal: AbortSignal,
    onWait: (message: string) => void,
  ): Promise<boolean> {
    while (!signal.aborted) {
      const taken = ports.find((port) => this.#claims.has(port));
      if (taken === undefined) {
        for (const port of ports) this.#claims.set(port, { owner, label });
        return true;
      }
      onWait(
        `port ${taken} is used by pod ${this.#claims.get(taken)!.label}: here pods share the machine's address, and each ` +
          'port can have one pod (as root, each pod has an address of its own)',
      );
      await new Promise<void>((resolve) => {
        this.#waiters.push(resolve);
        signal.addEventListener('abort', () => resolve(), { once: true });
      });
    }
    return false;
  }

  release(owner: string): void {
    for (const [port, claim] of this.#claims) {
      if (claim.owner === owner) this.#claims.delete(port);
    }
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const wake of waiters) wake();
  }
}
