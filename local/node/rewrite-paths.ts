/** Mount paths where there are no mount namespaces: replaced by what would be mounted there. Pure. */

export interface PathMount {
  readonly source: string;
  readonly target: string;
}

const boundary = /^[/:,;\s'"]/;

/**
 * Replaces mount paths by their sources in one word of a command line or one value of an environment: where a path
 * begins the word or follows a space, a quote or one of = : , ; and ends there or goes on with a slash.
 */
export function rewritePaths(word: string, mounts: readonly PathMount[]): string {
  // The longest first: /models/extra before /models.
  const ordered = mounts.toSorted((left, right) => right.target.length - left.target.length);
  let result = '';
  let rest = word;
  for (;;) {
    const mount = ordered.find(
      ({ target }) =>
        rest === target || (boundary.test(rest.slice(target.length)) && rest.startsWith(target)),
    );
    if (mount) {
      result += mount.source;
      rest = rest.slice(mount.target.length);
    }
    const next = rest.search(/[=:,;\s'"]/);
    if (next < 0) return result + rest;
    result += rest.slice(0, next + 1);
    rest = rest.slice(next + 1);
  }
}

export function rewriteEnvironment(
  environment: Readonly<Record<string, string>>,
  mounts: readonly PathMount[],
): Record<string, string> {
  return Object.fromEntries(
    Object.entries(environment).map(([name, value]) => [name, rewritePaths(value, mounts)]),
  );
}
