// Renders Ollama templates with Go's own text/template, over the fields that Ollama hands to a template.
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct{ Role, Content string }

type question struct {
	Template      string
	Conversations [][]message
}

func main() {
	var questions map[string]question
	if err := json.NewDecoder(os.Stdin).Decode(&questions); err != nil {
		panic(err)
	}
	answers := map[string][]string{}
	for name, asked := range questions {
		parsed := template.Must(template.New(name).Option("missingkey=zero").Parse(asked.Template))
		for _, messages := range asked.Conversations {
			pointers := []*message{}
			for i := range messages {
				pointers = append(pointers, &messages[i])
			}
			var out strings.Builder
			values := map[string]any{"Messages": pointers, "System": "", "Response": ""}
			if err := parsed.Execute(&out, values); err != nil {
				panic(err)
			}
			answers[name] = append(answers[name], out.String())
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(answers); err != nil {
		panic(err)
	}
}
