// Threads that compute together: a caller goes through the steps of some work, whose parts any thread may claim. The caller never waits for a
// thread that has not begun, so that one without a processor costs nothing. Between runs the threads spin for a moment and then sleep.
//
//   Team team(2);
//   if (team.take()) { team.run(work, argument, steps, parts); team.release(); }
//
// `parts[step]` is how many parts a step has; work(argument, step, part, thread) computes one of them, and a step begins when all parts of
// the one before are done. The caller is thread 0. One caller has the team at a time; `take` says whether it is this one.

#include <pthread.h>
#include <sched.h>

struct Team {
  typedef void (*Work)(void *argument, int step, int part, int thread);
  static constexpr int MOST_PARTS = 0xFFFF;
  static constexpr int SPINS = 4000;  // before a thread sleeps: about 100 microseconds
  static constexpr int YIELD = 1000;  // spins of the caller before the thread that it waits for gets its processor

  explicit Team(int wanted) : size(wanted), members(new Member[wanted]) {
    pthread_mutex_init(&mutex, nullptr);
    pthread_cond_init(&wake, nullptr);
    for (int i = 1; i < size; i++) {
      members[i].team = this;
      members[i].thread = i;
      members[i].started = pthread_create(&members[i].id, nullptr, live, &members[i]) == 0;
    }
  }

  ~Team() {
    pthread_mutex_lock(&mutex);
    __atomic_store_n(&stopped, 1, __ATOMIC_SEQ_CST);
    pthread_cond_broadcast(&wake);
    pthread_mutex_unlock(&mutex);
    for (int i = 1; i < size; i++) {
      if (members[i].started) pthread_join(members[i].id, nullptr);
    }
    delete[] members;
    pthread_cond_destroy(&wake);
    pthread_mutex_destroy(&mutex);
  }

  Team(const Team &) = delete;
  Team &operator=(const Team &) = delete;

  bool take() { return !__atomic_exchange_n(&taken, 1, __ATOMIC_ACQUIRE); }
  void release() { __atomic_store_n(&taken, 0, __ATOMIC_RELEASE); }

  void run(Work function, void *with, int steps, const int *parts) {
    work = function, argument = with;
    for (step = 0; step < steps; step++) {
      const int count = parts[step];
      if (count == 1) {
        work(argument, step, 0, 0);
        continue;
      }
      __atomic_store_n(&done, 0, __ATOMIC_RELAXED);
      turn++;
      __atomic_store_n(&ticket, (uint64_t)turn << 32 | (uint64_t)count << 16, __ATOMIC_SEQ_CST);
      if (__atomic_load_n(&sleeping, __ATOMIC_SEQ_CST)) {
        pthread_mutex_lock(&mutex);
        pthread_cond_broadcast(&wake);
        pthread_mutex_unlock(&mutex);
      }
      while (claim_and_work(0)) {
      }
      for (int spins = 0; __atomic_load_n(&done, __ATOMIC_ACQUIRE) < count; spins++) {
        if (spins < YIELD) {
          relax();
        } else {
          sched_yield();
        }
      }
    }
  }

 private:
  struct Member {
    Team *team;
    int thread;
    pthread_t id;
    bool started;
  };

  static void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  static bool open(uint64_t now) { return (now & 0xFFFF) < (now >> 16 & 0xFFFF); }

  // A ticket is (turn, parts, next part), so that what is claimed is a part of the step that is computed now, which then waits for it.
  bool claim_and_work(int thread) {
    uint64_t now = __atomic_load_n(&ticket, __ATOMIC_ACQUIRE);
    while (open(now)) {
      if (__atomic_compare_exchange_n(&ticket, &now, now + 1, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
        work(argument, step, (int)(now & 0xFFFF), thread);
        __atomic_add_fetch(&done, 1, __ATOMIC_ACQ_REL);
        return true;
      }
    }
    return false;
  }

  static void *live(void *member) {
    Team &team = *static_cast<Member *>(member)->team;
    const int thread = static_cast<Member *>(member)->thread;
    for (int spins = 0; !__atomic_load_n(&team.stopped, __ATOMIC_SEQ_CST); spins++) {
      if (team.claim_and_work(thread)) {
        spins = 0;
      } else if (spins < SPINS) {
        relax();
      } else {
        team.sleep();
        spins = 0;
      }
    }
    return nullptr;
  }

  void sleep() {
    pthread_mutex_lock(&mutex);
    __atomic_add_fetch(&sleeping, 1, __ATOMIC_SEQ_CST);
    while (!open(__atomic_load_n(&ticket, __ATOMIC_SEQ_CST)) && !__atomic_load_n(&stopped, __ATOMIC_SEQ_CST)) pthread_cond_wait(&wake, &mutex);
    __atomic_sub_fetch(&sleeping, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&mutex);
  }

  const int size;
  Member *members;
  Work work = nullptr;
  void *argument = nullptr;
  int step = 0;
  uint32_t turn = 0;
  pthread_mutex_t mutex;
  pthread_cond_t wake;
  alignas(64) uint64_t ticket = 0;
  alignas(64) int done = 0;
  alignas(64) int sleeping = 0;
  alignas(64) int taken = 0;
  int stopped = 0;
};
