"""A real HTTP server on loopback that answers as a test says: for every judge behind HTTP."""

import contextlib
import json
import socketserver
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Answers with the next of its scripted answers, the last one for ever, and keeps the questions.

    An answer is what is sent as JSON; bytes; (status, headers, either); a number of seconds to be late by; or a
    function of the question that returns one of these.
    """

    def __init__(self):
        self.answers, self.questions, self.headers, self.times = [], [], [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.questions.append(body)
                outer.headers.append(dict(self.headers))
                outer.times.append(time.monotonic())
                answer = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                answer = answer(body) if callable(answer) else answer
                if isinstance(answer, float):  # late
                    time.sleep(answer)
                    answer = {"rewards": [0.0] * len(body.get("query", []))}
                status, headers, content = answer if isinstance(answer, tuple) else (200, {}, answer)
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                try:
                    self.send_response(status)
                    for key, value in headers.items():
                        self.send_header(key, value)
                    if "Content-Length" not in headers:
                        self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:  # the client gave up
                    pass

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@contextlib.contextmanager
def trickling(head, part, *, pause=0.02):
    """The address of a server that sends `head`, and then `part` every `pause` seconds until the client goes away."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            try:
                self.request.sendall(head)
                while True:
                    self.request.sendall(part)
                    time.sleep(pause)
            except OSError:
                pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/get_reward"
        server.shutdown()
