// A customer of kind 5050 made of go-nostr, nak's library: it asks one provider and tells each
// feedback and the result, one JSON object a line. It ends with 0 when the result has come, else with one sentence on
// stderr. Whoever reads its lines may pay the invoice that is in them.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/nbd-wtf/go-nostr"
)

const (
	kindRequest = 5050
	kindResult  = kindRequest + 1000
)

var errGone = errors.New("the relay closed the connection")

// line is what is told of one event: the request, a feedback or the result.
type line struct {
	Kind    int    `json:"kind"`
	ID      string `json:"id"`
	Pubkey  string `json:"pubkey"`
	Status  string `json:"status,omitempty"`
	Info    string `json:"info,omitempty"`
	Amount  string `json:"amount,omitempty"` // msats
	Bolt11  string `json:"bolt11,omitempty"`
	Content string `json:"content"`
}

func main() {
	url := flag.String("relay", "", "the relay's `URL`")
	provider := flag.String("provider", "", "the provider's public `key` in hex")
	prompt := flag.String("prompt", "", "the `text` to send")
	limit := flag.Duration("limit", time.Minute, "the time until the result")
	flag.Parse()
	if *url == "" || !nostr.IsValidPublicKey(*provider) || *prompt == "" || flag.NArg() != 0 {
		fmt.Fprintln(os.Stderr, "customer: give -relay URL, -provider KEY in hex and -prompt TEXT")
		os.Exit(2)
	}
	nostr.InfoLogger.SetOutput(io.Discard) // stderr has our one sentence
	ctx, cancel := context.WithTimeout(context.Background(), *limit)
	defer cancel()
	if err := buy(ctx, *url, *provider, *prompt); err != nil {
		if ctx.Err() != nil { // whatever it cut short
			err = fmt.Errorf("no result from %s over %s within %s", *provider, *url, *limit)
		}
		fmt.Fprintln(os.Stderr, "customer:", err)
		os.Exit(1)
	}
}

// buy publishes a request and tells what comes of it, until the result is there.
func buy(ctx context.Context, url, provider, prompt string) error {
	// The library drops events with wrong signatures without a word; we check them ourselves and say so. The end of
	// ctx or of the process closes the connection.
	relay := nostr.NewRelay(ctx, url, nostr.WithNoticeHandler(func(string) {}))
	relay.AssumeValid = true
	if err := relay.Connect(ctx); err != nil {
		return fmt.Errorf("no connection: %w", err)
	}

	request := nostr.Event{
		CreatedAt: nostr.Now(),
		Kind:      kindRequest,
		Tags:      nostr.Tags{{"i", prompt, "text"}, {"p", provider}},
	}
	if err := request.Sign(nostr.GeneratePrivateKey()); err != nil {
		return fmt.Errorf("the request could not be signed: %w", err)
	}
	subscription, err := relay.Subscribe(ctx, nostr.Filters{{
		Kinds:   []int{kindResult, nostr.KindJobFeedback},
		Authors: []string{provider},
		Tags:    nostr.TagMap{"e": {request.ID}},
	}})
	if err != nil {
		return err
	}
	select {
	case <-subscription.EndOfStoredEvents: // from here on nothing that is live is missed
	case reason := <-subscription.ClosedReason:
		return fmt.Errorf("the relay closed the subscription: %q", reason)
	case <-relay.Context().Done():
		return errGone
	}
	if err := relay.Publish(ctx, request); err != nil {
		return fmt.Errorf("the relay did not take the request: %q", err.Error())
	}
	tell(&request)

	for {
		select {
		case event, open := <-subscription.Events:
			if !open {
				return errGone
			}
			if err := check(event, &request); err != nil {
				return err
			}
			tell(event)
			if event.Kind == kindResult {
				return nil
			}
			if status := tagOf(event, "status"); at(status, 1) == "error" {
				return fmt.Errorf("the provider refuses: %q", at(status, 2))
			}
		case reason := <-subscription.ClosedReason:
			return fmt.Errorf("the relay closed the subscription: %q", reason)
		}
	}
}

// check returns what is wrong with a reply to the request, nil when nothing is.
func check(event, request *nostr.Event) error {
	if err := signed(event); err != nil {
		return err
	}
	for name, wanted := range map[string]string{"e": request.ID, "p": request.PubKey} {
		if at(tagOf(event, name), 1) != wanted {
			return fmt.Errorf("the %s tag of event %s of kind %d is not ours", name, event.ID, event.Kind)
		}
	}
	if event.Kind != kindResult {
		return nil
	}
	var copied nostr.Event
	if err := json.Unmarshal([]byte(at(tagOf(event, "request"), 1)), &copied); err != nil {
		return fmt.Errorf("the request tag of event %s is no event: %w", event.ID, err)
	}
	if err := signed(&copied); err != nil {
		return fmt.Errorf("in the request tag of the result: %w", err)
	}
	if copied.ID != request.ID {
		return fmt.Errorf("the request tag of event %s holds another request", event.ID)
	}
	return nil
}

func signed(event *nostr.Event) error {
	if valid, err := event.CheckSignature(); err != nil || !valid || event.GetID() != event.ID {
		return fmt.Errorf("id or signature of event %s of kind %d is wrong", event.ID, event.Kind)
	}
	return nil
}

func tell(event *nostr.Event) {
	status, amount := tagOf(event, "status"), tagOf(event, "amount")
	told, err := json.Marshal(line{
		Kind: event.Kind, ID: event.ID, Pubkey: event.PubKey, Content: event.Content,
		Status: at(status, 1), Info: at(status, 2), Amount: at(amount, 1), Bolt11: at(amount, 2),
	})
	if err != nil {
		panic(err) // texts and a number always have a form in JSON
	}
	fmt.Println(string(told))
}

// tagOf returns the first tag of a name, empty when there is none.
func tagOf(event *nostr.Event, name string) nostr.Tag {
	for _, tag := range event.Tags {
		if tag.Key() == name {
			return tag
		}
	}
	return nil
}

func at(tag nostr.Tag, place int) string {
	if place < len(tag) {
		return tag[place]
	}
	return ""
}
