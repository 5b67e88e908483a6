package app

import (
	"fmt"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/matter-ops/kms-rotation/internal/corpus"
	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// sourceOpener returns what opens a registered source by its kind.
func sourceOpener(tables *dynamodb.Client, objects *s3.Client) func(kek.Source) (rotation.Source, error) {
	return func(def kek.Source) (rotation.Source, error) {
		switch def.Kind {
		case kek.KindDynamoDB:
			return ddb.OpenSource(tables, def)
		case kek.KindCorpus:
			return corpus.OpenSource(objects, def)
		}
		return nil, fmt.Errorf("kind %q is not known to this release; it knows %s and %s", def.Kind, kek.KindDynamoDB, kek.KindCorpus)
	}
}
