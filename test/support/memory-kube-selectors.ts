/** Label and field selectors as predicates, for the in-memory API server. Enters: the query parameter's text. */
import { KubeError, type KubeObject } from '../../operator/kube/client.ts';

/** `a=b, c!=d, e, !f, g in (h, i), j notin (k)`. */
export function labelMatcher(selector: string): (labels: Readonly<Record<string, string>>) => boolean {
  const tests = splitOutsideParentheses(selector).map((term) => {
    const set = /^([^\s!=,]+)\s+(in|notin)\s+\(([^)]*)\)$/.exec(term);
    if (set !== null) {
      const [, key, operator, list] = set as unknown as [string, string, string, string];
      const values = list.split(',').map((value) => value.trim());
      return (labels: Readonly<Record<string, string>>) => {
        const value = labels[key];
        return (value !== undefined && values.includes(value)) === (operator === 'in');
      };
    }
    const comparison = /^([^\s!=]+)\s*(==|=|!=)\s*(\S*)$/.exec(term);
    if (comparison !== null) {
      const [, key, operator, value] = comparison as unknown as [string, string, string, string];
      return (labels: Readonly<Record<string, string>>) => (labels[key] === value) === (operator !== '!=');
    }
    const existence = /^(!?)\s*([^\s!=]+)$/.exec(term);
    if (existence === null) throw badSelector(term);
    const [, not, key] = existence as unknown as [string, string, string];
    return (labels: Readonly<Record<string, string>>) => key in labels === (not === '');
  });
  return (labels) => tests.every((test) => test(labels));
}

/** `metadata.name=x,spec.nodeName!=y`; a missing field is the empty string. */
export function fieldMatcher(selector: string): (object: KubeObject) => boolean {
  const tests = splitOutsideParentheses(selector).map((term) => {
    const match = /^([^\s!=]+)\s*(==|=|!=)\s*(.*)$/.exec(term);
    if (match === null) throw badSelector(term);
    const [, path, operator, value] = match as unknown as [string, string, string, string];
    return (object: KubeObject) => {
      const found = path
        .split('.')
        .reduce<unknown>((at, name) => (at as Record<string, unknown>)?.[name], object);
      return (String(found ?? '') === value) === (operator !== '!=');
    };
  });
  return (object) => tests.every((test) => test(object));
}

function splitOutsideParentheses(selector: string): string[] {
  const terms = selector.split(/,(?![^(]*\))/).map((term) => term.trim());
  return terms.filter((term) => term !== '');
}

function badSelector(term: string): KubeError {
  return new KubeError(400, 'BadRequest', `unable to parse requirement: ${JSON.stringify(term)}`);
}
