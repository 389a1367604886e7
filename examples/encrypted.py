"""Encrypted jobs: who reads the database sees names, labels, states and times, and nothing of what a job carries.

    pip install cryptography
    python encrypted.py

It uses the MongoDB of AXEQ_URI; without one, a server of its own on ./encrypted-data
(`pip install 'axeq[embedded]'`). Keys come from a key store or the environment, never from the program as here.

To rotate keys: 1. start everything with `Encrypted(old, new)`, so that all can read the new key; 2. with
`Encrypted(new, old)`, so that all write it; 3. once no job of the old key is kept any more, with `Encrypted(new)`.
"""

import os
import threading

from cryptography.fernet import Fernet, MultiFernet
from pydantic import BaseModel, SecretStr

import axeq

TARGET = os.environ.get("AXEQ_URI") or "embedded:encrypted-data"


class Encrypted:
    """A codec of axeq: the first key encrypts, every key decrypts."""

    def __init__(self, *keys: bytes) -> None:
        self._fernet = MultiFernet([Fernet(key) for key in keys])

    def encode(self, data: bytes) -> bytes:
        return self._fernet.encrypt(data)

    def decode(self, data: bytes) -> bytes:
        return self._fernet.decrypt(data)


class Receipt(BaseModel):
    text: str


class Payment(axeq.Model[Receipt], name="payment"):
    card: SecretStr
    cents: int


async def pay(ctx: axeq.Context[Payment, Receipt]) -> Receipt:
    card = ctx.model.card.get_secret_value()
    return Receipt(text=f"{ctx.model.cents} cents from ...{card[-4:]}")


def producer(codec: Encrypted) -> axeq.Job[Payment, Receipt]:
    with axeq.Store(TARGET, codec=codec) as store:
        return axeq.Queue(store).enqueue(Payment(card=SecretStr("4111111111111111"), cents=1200))


def worker(codec: Encrypted, job: axeq.Job[Payment, Receipt]) -> None:
    with axeq.Store(TARGET, codec=codec) as store:
        pool = axeq.Pool(store)
        pool.add(axeq.Task(Payment, pay))
        running = threading.Thread(target=pool.run)
        running.start()
        try:
            receipt = axeq.Queue(store).get(job.id, model=Payment).wait(timeout=60)
            print("paid:", receipt.text)
        finally:
            pool.stop()
            running.join()


def stranger(job: axeq.Job[Payment, Receipt]) -> None:
    with axeq.Store(TARGET) as store:
        seen = axeq.Queue(store).get(job.id, model=Payment)
        print("seen by others:", seen.name, seen.state, type(seen.data).__name__, type(seen.result).__name__)
        try:
            print(seen.payload)
        except axeq.PayloadSealed as error:
            print(error)


def main() -> None:
    old, new = Fernet.generate_key(), Fernet.generate_key()
    job = producer(Encrypted(old))
    worker(Encrypted(new, old), job)
    stranger(job)


if __name__ == "__main__":
    main()

# paid: 1200 cents from ...1111
# seen by others: payment completed Binary Binary
# payload of 'payment' is sealed, and this store has no codec: give it the one that sealed it
