// judge-definitions FILE ...: what the oldest Kubernetes that is supported has against CustomResourceDefinitions.
//
// The price of a rule in CEL, and with it whether a definition is taken at all, changes from release to release.
// This is the code by which that release's API server judges, at the version in go.mod.
package main

import (
	"context"
	"fmt"
	"os"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/install"
	v1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

func main() {
	status := 0
	for _, file := range os.Args[1:] {
		if err := judge(file); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", file, err)
			status = 1
		}
	}
	os.Exit(status)
}

func judge(file string) error {
	scheme := runtime.NewScheme()
	install.Install(scheme)
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var written v1.CustomResourceDefinition
	if err := yaml.UnmarshalStrict(text, &written); err != nil {
		return err
	}
	scheme.Default(&written)
	var read apiextensions.CustomResourceDefinition
	if err := scheme.Convert(&written, &read, nil); err != nil {
		return err
	}
	// An API server fills this in before it judges.
	for _, version := range read.Spec.Versions {
		read.Status.StoredVersions = append(read.Status.StoredVersions, version.Name)
	}
	return validation.ValidateCustomResourceDefinition(context.Background(), &read).ToAggregate()
}
