/** docs/reference/runtime.md, from the table of options. Pure; scripts/generate.ts writes it. */

import type { Option } from '../config/options.ts';
import { defaultText, runtimeOptions } from '../config.ts';

const head = `<!-- Generated from runtime/config.ts by npm run generate; do not edit. -->
# Options of the runtime

Every option can be given as a flag (\`--port 8000\` or \`--port=8000\`), as an environment variable, or in the YAML file
that \`--config\` (\`SLUICE_CONFIG\`) names, where the key is the flag without its dashes. Flags win over variables,
variables over the file. An empty variable counts as absent; variables that Kubernetes makes for Services
(\`SLUICE_PORT=tcp://...\`) are left alone. Anything unknown, malformed or given twice ends the program with exit code 2
and one line that says what was expected.

Those with a name under \`spec.runtime\` can be set in an InferenceService.
`;

export function runtimeReference(): string {
  const options: readonly Option[] = Object.values(runtimeOptions);
  const sections = [...Map.groupBy(options, (option) => option.group)].map(
    ([group, members]) =>
      `\n## ${group}\n\n| flag | variable | \`spec.runtime\` | default | form | |\n|---|---|---|---|---|---|\n${members.map(row).join('\n')}\n`,
  );
  return head + sections.join('');
}

function row(option: Option): string {
  const cells = [
    `\`--${option.flag}\``,
    option.env === null ? '' : `\`${option.env}\``,
    option.spec === undefined ? '' : `\`${option.spec}\``,
    defaultText(option),
    `${option.form}, for example \`${option.example}\``,
    option.description,
  ];
  return `| ${cells.map((cell) => cell.replaceAll('|', '\\|').replaceAll('<', '&lt;')).join(' | ')} |`;
}
