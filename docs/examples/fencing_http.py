"""A service of your own that takes a token with each write, and refuses a lower one."""

import json
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from celery import Celery

from celery_idempotent import ClaimLost, IdempotentTask

app = Celery("shop", broker="memory://", backend="cache+memory://")
app.conf.update(task_always_eager=True, idempotency_store_url="memory://")
prices, lock = {}, threading.Lock()


class PriceService(BaseHTTPRequestHandler):
    def do_PUT(self):
        token = int(self.headers["Fencing-Token"])
        price = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with lock:
            _, last = prices.get(self.path, (None, 0))
            taken = token >= last
            if taken:
                prices[self.path] = (price, token)
        self.send_response(204 if taken else 412)
        self.end_headers()

    def log_message(self, *args):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), PriceService)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"


def put(product, price, token):
    request = urllib.request.Request(f"{url}/{product}", json.dumps(price).encode(), method="PUT")
    request.add_header("Fencing-Token", str(token))
    try:
        urllib.request.urlopen(request, timeout=10).close()
    except urllib.error.HTTPError as exc:
        if exc.code == 412:
            raise ClaimLost(f"{product} was written by a later run") from exc
        raise


@app.task(base=IdempotentTask, bind=True, idempotency_key="price:{product}")
def set_price(self, product, price):
    put(product, price, self.idempotency.token)


# [end]

set_price.delay("book", 12).get()
try:
    put("book", 10, token=1)
except ClaimLost:
    pass
else:
    raise AssertionError("a late write was taken")
assert prices["/book"][0] == 12
server.shutdown()
