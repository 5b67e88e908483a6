// Runs a state machine in aws-local-stepfunctions, an interpreter of the Amazon States
// Language that is not ours, with scripted answers for the functions.
//
// Standard input is {"definition", "inner", "base", "runs"}; standard output has one line
// of JSON for each run, in order, and after them one with the errors of asl-validator.
// NODE_PATH names where both packages are.
const {StateMachine} = require('aws-local-stepfunctions');
const validate = require('asl-validator');

const {definition, inner, base, runs} = JSON.parse(require('fs').readFileSync(0, 'utf8'));

const complaints = validate(structuredClone(definition)).errors;

// The interpreter hands the machine's limit to setTimeout, which takes 24 days at most and
// ends a longer one at once.
const {TimeoutSeconds, ...unlimited} = definition;

// It reads TimeoutSecondsPath from what Parameters make, AWS from the state's input: what the
// path names is put there too.
for (const s of Object.values(unlimited.States)) {
  if (s.TimeoutSecondsPath) s.Parameters[s.TimeoutSecondsPath.replace('$.', '') + '.$'] = s.TimeoutSecondsPath;
}

// It knows no distributed Map: an item that fails fails an inline one with its own error, where
// a map run fails with States.ExceedToleratedFailureThreshold, whatever the child execution
// failed with. So here, and only here, the Maps become inline ones whose first Catch, which is
// that for the child executions, catches every error.
for (const s of Object.values(unlimited.States)) {
  if (s.Type !== 'Map') continue;
  s.ItemProcessor.ProcessorConfig = {Mode: 'INLINE'};
  delete s.Label;
  s.Catch = [{...s.Catch[0], ErrorEquals: ['States.ALL']}];
}

// tasks lists the states that invoke a function, those of Maps too.
function tasks(states) {
  return Object.entries(states).flatMap(([name, s]) =>
    [...(s.Type === 'Task' ? [name] : []), ...(s.ItemProcessor ? tasks(s.ItemProcessor.States) : [])]);
}

// halted is what function notify does when it is told of a halt: it fails the execution,
// and lets one that has been redriven since go on.
function halted(payload) {
  return payload.execution.RedriveCount > payload.halted_in.RedriveCount ? {ok: {sent: false}} : {error: 'Halted', cause: payload.error};
}

async function run(r) {
  const answers = structuredClone(r.answers ?? {});
  const calls = [], trail = [], items = {};
  const handler = state => async ({FunctionName, Payload: payload}) => {
    const key = inner.includes(state) ? `${state} ${payload.source}/${payload.segment}` : state;
    calls.push({key, function: FunctionName, payload});
    const a = answers[key]?.shift() ?? (payload.event === 'halted' ? halted(payload) : r.base[state] ?? base[state]);
    if (!a) throw new Error(`no answer for ${key}`);
    if (a.hang) return new Promise(() => {});
    if (a.error) throw Object.assign(new Error(a.cause), {name: a.error});
    return {ExecutedVersion: '$LATEST', Payload: a.ok, StatusCode: 200};
  };
  const names = tasks(unlimited.States);
  const overrides = {
    taskResourceLocalHandlers: Object.fromEntries(names.map(n => [n, handler(n)])),
    retryIntervalOverrides: Object.fromEntries(names.map(n => [n, 0])),
    waitTimeOverrides: Object.fromEntries(inner.map(n => [n, 0])),
  };
  const context = {Execution: {...r.execution, RedriveCount: 0}, Task: {Token: 'token'}};
  for (let machine = unlimited, input = r.input;;) {
    const x = new StateMachine(machine, {validationOptions: {noValidate: true}}).run(input, {overrides, context});
    let last;
    const log = (async () => {
      for await (const e of x.eventLogs) {
        if (e.type !== 'StateEntered') continue;
        if (e.index !== undefined) (items[e.index] ??= []).push(e.state.name);
        else trail.push((last = e.state).name);
      }
    })();
    let end;
    try {
      end = {status: 'SUCCEEDED', output: await x.result};
    } catch (e) {
      end = {status: 'FAILED', error: e.cause?.name ?? e.name, cause: e.cause?.message ?? e.message};
    }
    await log;
    if (end.error !== 'Halted' || context.Execution.RedriveCount === r.redrives) return {...end, calls, trail, items};
    // It cannot redrive: a new run begins in the state that failed, with that state's input.
    context.Execution.RedriveCount++;
    context.Execution.RedriveTime = '2026-04-01T03:00:00Z';
    machine = {...unlimited, StartAt: last.name};
    input = last.input;
  }
}

// Where it cannot read a task's timeout it fails the task and leaves the call alone.
process.on('unhandledRejection', () => {});

(async () => {
  for (const r of await Promise.all(runs.map(run))) console.log(JSON.stringify(r));
  console.log(JSON.stringify(complaints));
})();
