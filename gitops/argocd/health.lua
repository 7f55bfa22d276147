-- Argo CD's view of an InferenceService (sluice.dev), from the conditions that the operator writes.
-- Healthy: what the spec asks for is reached. Progressing: the operator is at it. Suspended: it waits for a person.
-- Degraded: only a person can help, or a rollout was rolled back.
local conditions = {}
if obj.status ~= nil and obj.status.conditions ~= nil then
  for _, condition in ipairs(obj.status.conditions) do
    conditions[condition.type] = condition
  end
end

local function isTrue(condition)
  return condition ~= nil and condition.status == "True"
end

local function health(status, condition)
  return {status = status, message = condition.reason .. ": " .. condition.message}
end

if obj.metadata.deletionTimestamp ~= nil then
  return {status = "Progressing", message = "The object is being deleted"}
end
if obj.status == nil or obj.status.observedGeneration ~= obj.metadata.generation then
  return {status = "Progressing", message = "The operator has not looked at this spec yet"}
end
if isTrue(conditions.Stalled) then
  return health("Degraded", conditions.Stalled)
end
if isTrue(conditions.Reconciling) and conditions.Reconciling.reason == "ManualPause" then
  return health("Suspended", conditions.Reconciling)
end
if isTrue(conditions.Reconciling) then
  return health("Progressing", conditions.Reconciling)
end
if isTrue(conditions.Ready) then
  return health("Healthy", conditions.Ready)
end
return {status = "Progressing", message = "The operator has not said yet how it stands"}
