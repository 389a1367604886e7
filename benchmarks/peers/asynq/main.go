// Command asynq measures asynq (Redis) the way the Python peer programs are measured: see harness.py beside it.
package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
)

const (
	look         = 10 * time.Millisecond
	latencyEvery = 100 * time.Millisecond
	warmUps      = 3
	markSize     = 16
)

var (
	url         = flag.String("url", "", "redis://host:port/number; the database is emptied")
	n           = flag.Int("n", 5000, "how many jobs")
	concurrency = flag.Int("concurrency", 10, "how many at once")
	latency     = flag.Int("latency", 50, "how many jobs are timed one by one")
	results     = flag.String("results", "no", "asynq stores none by itself")
	limit       = flag.Float64("limit", 300, "seconds for the worker to finish")
	folder      = flag.String("work", "", "run the worker on the files of this folder")
)

type payload struct {
	X int    `json:"x"`
	S string `json:"s"`
}

func main() {
	flag.Parse()
	redisOption, err := asynq.ParseRedisURI(*url)
	check(err)
	if *folder != "" {
		work(redisOption)
		return
	}
	*folder, err = os.MkdirTemp("", "axeq-peer-")
	check(err)
	report, err := measure(redisOption)
	check(os.RemoveAll(*folder))
	check(err)
	check(json.NewEncoder(os.Stdout).Encode(report))
}

func work(redisOption asynq.RedisConnOpt) {
	marks, err := os.OpenFile(marksPath(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	check(err)
	handler := func(_ context.Context, task *asynq.Task) error {
		var note payload
		if err := json.Unmarshal(task.Payload(), &note); err != nil {
			return err
		}
		var mark [markSize]byte
		binary.LittleEndian.PutUint64(mark[:8], uint64(note.X))
		binary.LittleEndian.PutUint64(mark[8:], uint64(time.Now().UnixNano()))
		_, err := marks.Write(mark[:])
		return err
	}
	check(os.WriteFile(startedPath()+".draft", []byte(strconv.FormatInt(time.Now().UnixNano(), 10)), 0o600))
	check(os.Rename(startedPath()+".draft", startedPath()))
	server := asynq.NewServer(redisOption, asynq.Config{
		Concurrency:       *concurrency,
		TaskCheckInterval: look,
		LogLevel:          asynq.WarnLevel,
	})
	mux := asynq.NewServeMux()
	mux.HandleFunc("note", handler)
	check(server.Start(mux))
	// The measuring half holds the other end, so that its death, of whatever cause, ends this one.
	_, _ = io.Copy(io.Discard, os.Stdin)
	server.Shutdown()
}

func measure(redisOption asynq.RedisConnOpt) (map[string]any, error) {
	check(redisOption.MakeRedisClient().(redis.UniversalClient).FlushDB(context.Background()).Err())
	client := asynq.NewClient(redisOption)
	defer client.Close()
	inspector := asynq.NewInspector(redisOption)
	defer inspector.Close()

	alone := enqueueRate(client, 0, *n/2, 1)
	together := enqueueRate(client, *n/2, *n, *concurrency)

	running, err := startWorker()
	if err != nil {
		return nil, err
	}
	defer running.stop()
	began, err := waitForStart(running)
	if err != nil {
		return nil, err
	}
	if err := waitFor(running, "the handlers did not all run", func() bool { return allRan(*n) }); err != nil {
		return nil, err
	}
	finished := func() bool {
		info, err := inspector.GetQueueInfo("default")
		return err == nil && info.Size == 0
	}
	if err := waitFor(running, "the queue is not empty", finished); err != nil {
		return nil, err
	}
	seconds := float64(time.Now().UnixNano()-began) / 1e9
	latencies, err := latencies(client, running)
	if err != nil {
		return nil, err
	}
	return map[string]any{
		"version":        version(),
		"n":              *n,
		"results":        false,
		"enqueue_per_s":  math.Round(math.Max(alone, together)),
		"process_per_s":  math.Round(float64(*n)/seconds*10) / 10,
		"latency_p50_ms": percentile(latencies, 0.50),
		"latency_p95_ms": percentile(latencies, 0.95),
		"ran_twice":      len(marks())/markSize - len(starts()),
		"settings":       "Concurrency: 10, TaskCheckInterval: 10 ms (default 1 s)",
	}, nil
}

func enqueueRate(client *asynq.Client, first, end, atOnce int) float64 {
	var next atomic.Int64
	next.Store(int64(first))
	began := time.Now()
	var group sync.WaitGroup
	for range atOnce {
		group.Add(1)
		go func() {
			defer group.Done()
			for x := next.Add(1) - 1; x < int64(end); x = next.Add(1) - 1 {
				enqueue(client, int(x))
			}
		}()
	}
	group.Wait()
	return float64(end-first) / time.Since(began).Seconds()
}

func enqueue(client *asynq.Client, x int) {
	data, err := json.Marshal(payload{X: x, S: strings.Repeat("s", 100)})
	check(err)
	_, err = client.Enqueue(asynq.NewTask("note", data))
	check(err)
}

func latencies(client *asynq.Client, running *worker) ([]float64, error) {
	if *latency == 0 {
		return nil, nil
	}
	sent := map[int]int64{}
	last := *n + *latency + warmUps
	for x := *n; x < last; x++ {
		time.Sleep(latencyEvery)
		sent[x] = time.Now().UnixNano()
		enqueue(client, x)
	}
	if err := waitFor(running, "the timed handlers did not all run", func() bool { return allRan(last) }); err != nil {
		return nil, err
	}
	started := starts()
	var taken []float64
	for x := *n + warmUps; x < last; x++ {
		taken = append(taken, float64(started[x]-sent[x])/1e6)
	}
	return taken, nil
}

// worker is the process that runs the jobs; it ends when `hold`, its standard input, is closed.
type worker struct {
	process *exec.Cmd
	hold    io.Closer
	ended   chan struct{}
}

func startWorker() (*worker, error) {
	process := exec.Command(os.Args[0], "--url", *url, "--concurrency", strconv.Itoa(*concurrency), "--work", *folder)
	process.Stderr = os.Stderr
	hold, err := process.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := process.Start(); err != nil {
		return nil, err
	}
	started := &worker{process: process, hold: hold, ended: make(chan struct{})}
	go func() {
		_ = process.Wait()
		close(started.ended)
	}()
	return started, nil
}

func (w *worker) stop() {
	_ = w.hold.Close()
	select {
	case <-w.ended:
	case <-time.After(8 * time.Second):
		_ = w.process.Process.Kill()
		<-w.ended
	}
}

func waitForStart(running *worker) (int64, error) {
	var text []byte
	err := waitFor(running, "the worker did not start", func() bool {
		content, err := os.ReadFile(startedPath())
		text = content
		return err == nil
	})
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(string(text), 10, 64)
}

func waitFor(running *worker, complaint string, done func() bool) error {
	until := time.Now().Add(time.Duration(*limit * float64(time.Second)))
	for !done() {
		select {
		case <-running.ended:
			return errors.New("the worker ended by itself: " + complaint)
		case <-time.After(look):
		}
		if time.Now().After(until) {
			return errors.New("out of time: " + complaint)
		}
	}
	return nil
}

func allRan(count int) bool {
	return len(marks())/markSize >= count && len(starts()) >= count
}

func starts() map[int]int64 {
	started := map[int]int64{}
	for content := marks(); len(content) >= markSize; content = content[markSize:] {
		x := int(binary.LittleEndian.Uint64(content[:8]))
		if _, seen := started[x]; !seen {
			started[x] = int64(binary.LittleEndian.Uint64(content[8:markSize]))
		}
	}
	return started
}

func marks() []byte {
	content, _ := os.ReadFile(marksPath())
	return content
}

func percentile(values []float64, part float64) any {
	if len(values) == 0 {
		return nil
	}
	sort.Float64s(values)
	return math.Round(values[int(part*float64(len(values)-1)+0.5)]*100) / 100
}

func version() string {
	if build, ok := debug.ReadBuildInfo(); ok {
		for _, module := range build.Deps {
			if module.Path == "github.com/hibiken/asynq" {
				return strings.TrimPrefix(module.Version, "v")
			}
		}
	}
	return ""
}

func marksPath() string   { return filepath.Join(*folder, "marks") }
func startedPath() string { return filepath.Join(*folder, "started") }

func check(err error) {
	if err != nil {
		log.Fatal(fmt.Errorf("asynq: %w", err))
	}
}
