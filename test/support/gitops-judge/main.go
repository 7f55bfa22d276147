// gitops-judge says what Argo CD and Flux would say of objects: it runs a Lua health check on the interpreter that Argo CD
// embeds (gopher-lua) and healthCheckExprs on the one that Flux embeds (cel-go), in the order of Flux's RFC 0009. Enters:
// JSON on standard input. Leaves: JSON, a verdict for each object.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/ext"
	lua "github.com/yuin/gopher-lua"
)

type input struct {
	Lua  string `json:"lua"`
	Flux struct {
		InProgress string `json:"inProgress"`
		Failed     string `json:"failed"`
		Current    string `json:"current"`
	} `json:"flux"`
	Objects []map[string]any `json:"objects"`
}

type verdict struct {
	Argo    string `json:"argo"`
	Message string `json:"message"`
	Flux    string `json:"flux"`
}

func main() {
	var in input
	must(json.NewDecoder(os.Stdin).Decode(&in))
	verdicts := []verdict{}
	for _, object := range in.Objects {
		status, message := argo(in.Lua, object)
		flux := fluxVerdict(in, object)
		verdicts = append(verdicts, verdict{status, message, flux})
	}
	must(json.NewEncoder(os.Stdout).Encode(verdicts))
}

// argo opens what Argo CD opens: base, table and string.
func argo(script string, object map[string]any) (string, string) {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for name, open := range map[string]lua.LGFunction{
		lua.LoadLibName: lua.OpenPackage, lua.BaseLibName: lua.OpenBase,
		lua.TabLibName: lua.OpenTable, lua.StringLibName: lua.OpenString,
	} {
		must(state.CallByParam(lua.P{Fn: state.NewFunction(open), Protect: true}, lua.LString(name)))
	}
	state.SetGlobal("obj", luaValue(state, object))
	must(state.DoString(script))
	result := state.Get(-1).(*lua.LTable)
	return result.RawGetString("status").String(), result.RawGetString("message").String()
}

func luaValue(state *lua.LState, value any) lua.LValue {
	switch typed := value.(type) {
	case bool:
		return lua.LBool(typed)
	case float64:
		return lua.LNumber(typed)
	case string:
		return lua.LString(typed)
	case []any:
		table := state.NewTable()
		for _, item := range typed {
			table.Append(luaValue(state, item))
		}
		return table
	case map[string]any:
		table := state.NewTable()
		for key, item := range typed {
			table.RawSetString(key, luaValue(state, item))
		}
		return table
	}
	return lua.LNil
}

// fluxVerdict follows StatusEvaluator of github.com/fluxcd/pkg/runtime/cel.
func fluxVerdict(in input, object map[string]any) string {
	status, _ := object["status"].(map[string]any)
	metadata, _ := object["metadata"].(map[string]any)
	if observed, ok := status["observedGeneration"]; ok && observed != metadata["generation"] {
		return "InProgress"
	}
	for _, each := range []struct{ expression, verdict string }{
		{in.Flux.InProgress, "InProgress"},
		{in.Flux.Failed, "Failed"},
		{in.Flux.Current, "Current"},
	} {
		if each.expression == "" {
			continue
		}
		holds, err := holds(each.expression, object)
		if err != nil {
			// Flux looks again until its timeout.
			return "Unknown"
		}
		if holds {
			return each.verdict
		}
	}
	return "InProgress"
}

func holds(expression string, object map[string]any) (bool, error) {
	environment, err := cel.NewEnv(
		cel.HomogeneousAggregateLiterals(), cel.DefaultUTCTimeZone(true), cel.CrossTypeNumericComparisons(true),
		cel.OptionalTypes(), ext.Strings(), ext.Sets(), ext.Encoders(),
	)
	must(err)
	// Parsed and not checked, as Flux does it: the fields are not declared.
	ast, issues := environment.Parse(expression)
	if issues != nil {
		must(issues.Err())
	}
	program, err := environment.Program(ast, cel.EvalOptions(cel.OptOptimize))
	must(err)
	value, _, err := program.Eval(object)
	if err != nil {
		return false, err
	}
	result, ok := value.Value().(bool)
	if !ok {
		return false, fmt.Errorf("%s gives %v", expression, value)
	}
	return result, nil
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
